"""A fake board that runs PYNQ.remote: an in-process gRPC server backed by one `FakeCard`.

The services are those of PYNQ's protocol and behave as PYNQ's own server
(``sdbuild/boot/meta-pynq/recipes-apps/pynq-cpp/files/cpp/pynq-remote.cc`` of Xilinx/PYNQ): buffers
are written and read whole, from their start; a register access has four bytes; a failed allocation
returns no buffer id and no message.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from pynq.remote import (
    buffer_pb2,
    buffer_pb2_grpc,
    mmio_pb2,
    mmio_pb2_grpc,
    remote_device_pb2,
    remote_device_pb2_grpc,
)
from support.fake_card import FakeCard, ProcessorRegisters

from llama_pynq.emulation import hwh

FIRMWARE = "/lib/firmware/"
FPGA_MANAGER = "/sys/class/fpga_manager/fpga0/"
_CHUNK = 1 << 20


class FakeRemoteBoard:
    """The fake board.

    Attributes
    ----------
    card : FakeCard
    calls : list of str
        Every protocol call, in order.
    files : dict
        Files of the board, bytes by path.
    full, away : bool
        Fail allocations; answer no call.
    processor : ProcessorRegisters
    port : int
    """

    def __init__(self, metadata: bytes, name: str = "KV260") -> None:
        self.card = FakeCard()
        self.metadata = metadata  # .hwh of the only overlay that can be loaded; emulation needs it
        self.calls: list[str] = []
        self.processor = ProcessorRegisters()
        self.files = {
            "/proc/version": b"Linux version 6.6 (aarch64-linux-gnu)",
            "/proc/device-tree/chosen/pynq_board": name.encode() + b"\0",
            f"{FPGA_MANAGER}state": b"operating\n",
            f"{FPGA_MANAGER}flags": b"0\n",
        }
        self.maps: list[int] = []
        self.buffers: dict[str, Any] = {}
        self.full = False
        self.away = False
        self._server = grpc.server(ThreadPoolExecutor(max_workers=4), interceptors=[_Log(self)])
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        remote_device_pb2_grpc.add_RemoteDeviceServicer_to_server(_Device(self), self._server)
        mmio_pb2_grpc.add_MmioServicer_to_server(_Mmio(self), self._server)
        buffer_pb2_grpc.add_RemoteBufferServicer_to_server(_Buffer(self), self._server)
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def program(self, name: str) -> None:
        data = self.files[FIRMWARE + name]
        words = np.frombuffer(data, "i4").byteswap().tobytes()
        self.card.load(hwh.write_bit(words), ".bit", self.metadata)


class _Log(grpc.ServerInterceptor):
    def __init__(self, board: FakeRemoteBoard) -> None:
        self._board = board

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        self._board.calls.append(details.method.rpartition("/")[2])
        if self._board.away:
            return grpc.unary_unary_rpc_method_handler(self._refuse)
        return continuation(details)

    def _refuse(self, request: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.UNAVAILABLE, "a test's board does not answer")


class _Device(remote_device_pb2_grpc.RemoteDeviceServicer):
    def __init__(self, board: FakeRemoteBoard) -> None:
        self.board = board

    def existsfile(self, request: Any, context: Any) -> Any:
        return remote_device_pb2.ExistsFileResponse(exists=request.file_path in self.board.files)

    def readfile(self, request: Any, context: Any) -> Iterator[Any]:
        data = self.board.files[request.file_path]
        for at in range(0, len(data), 1024):
            yield remote_device_pb2.ReadFileResponse(data=data[at : at + 1024])

    def writefile(self, requests: Any, context: Any) -> Any:
        path, data = "", b""
        for request in requests:
            path = request.file_path
            data += request.data
            self.board.files[path] = data
        if path == f"{FPGA_MANAGER}firmware":
            self.board.program(data.decode())
        return remote_device_pb2.WriteFileResponse()

    def set_bitstream_attrs(self, request: Any, context: Any) -> Any:
        return remote_device_pb2.SetBitstreamAttrsResponse()


class _Mmio(mmio_pb2_grpc.MmioServicer):
    def __init__(self, board: FakeRemoteBoard) -> None:
        self.board = board

    def _where(self, request: Any) -> tuple[Any, int]:
        address = self.board.maps[int(request.mmio_id)] + request.offset
        card = self.board.card
        inside = card.base and card.base <= address < card.base + 0x10000
        return (card if inside else self.board.processor), address

    def get_mmio(self, request: Any, context: Any) -> Any:
        self.board.maps.append(request.base_addr)
        return mmio_pb2.GetMmioResponse(mmio_id=str(len(self.board.maps) - 1))

    def read(self, request: Any, context: Any) -> Any:
        where, address = self._where(request)
        return mmio_pb2.ReadResponse(data=where.read(address))

    def write(self, request: Any, context: Any) -> Any:
        where, address = self._where(request)
        where.write(address, int.from_bytes(request.data[:4], "little"))  # ignores further bytes
        return mmio_pb2.WriteResponse()


class _Buffer(buffer_pb2_grpc.RemoteBufferServicer):
    def __init__(self, board: FakeRemoteBoard) -> None:
        self.board = board

    def allocate(self, request: Any, context: Any) -> Any:
        if self.board.full:
            return buffer_pb2.AllocateResponse()
        allocation = self.board.card.allocate(request.size)
        host = (ctypes.c_char * request.size)()
        buffer_id = hex(allocation.address)
        self.board.buffers[buffer_id] = (allocation, host)
        return buffer_pb2.AllocateResponse(buffer_id=buffer_id)

    def write(self, requests: Any, context: Any) -> Any:
        at = 0
        for request in requests:
            if request.buffer_id not in self.board.buffers:
                return buffer_pb2.BufferWriteResponse(msg="Buffer not found.")
            _, host = self.board.buffers[request.buffer_id]
            if at + len(request.data) > len(host):
                return buffer_pb2.BufferWriteResponse(msg="Buffer overflow.")
            ctypes.memmove(ctypes.addressof(host) + at, request.data, len(request.data))
            at += len(request.data)
        return buffer_pb2.BufferWriteResponse()

    def read(self, request: Any, context: Any) -> Iterator[Any]:
        _, host = self.board.buffers[request.buffer_id]
        for at in range(0, len(host), _CHUNK):
            yield buffer_pb2.BufferReadResponse(data=host.raw[at : at + _CHUNK])

    def _sync(self, buffer_id: str, to: bool) -> None:
        allocation, host = self.board.buffers[buffer_id]
        self.board.card.sync(allocation, to, ctypes.addressof(host), 0, len(host))

    def flush(self, request: Any, context: Any) -> Any:
        self._sync(request.buffer_id, True)
        return buffer_pb2.FlushResponse()

    def invalidate(self, request: Any, context: Any) -> Any:
        self._sync(request.buffer_id, False)
        return buffer_pb2.InvalidateResponse()

    def freebuffer(self, request: Any, context: Any) -> Any:
        self.board.card.free(self.board.buffers.pop(request.buffer_id)[0])
        return buffer_pb2.FreeBufferResponse()

    def physical_address(self, request: Any, context: Any) -> Any:
        allocation, _ = self.board.buffers[request.buffer_id]
        return buffer_pb2.AddressResponse(address=allocation.address)
