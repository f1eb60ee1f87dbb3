"""Opening a checkpoint: missing files and folders."""

from support.checkpoint_cases import refused

from llama_pynq.errors import LlamaPynqError


def test_load_checkpoint_missing_file_is_refused(tmp_path):
    refused(tmp_path / "no.bin", "there is no file", "check the path")
    refused(tmp_path / "no.bin", error=FileNotFoundError)
    refused(tmp_path / "no.bin", error=LlamaPynqError)


def test_load_checkpoint_folder_is_refused(tmp_path):
    refused(tmp_path, "is a folder, not a checkpoint", "config.json")
