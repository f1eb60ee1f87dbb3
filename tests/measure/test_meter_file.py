"""Files of power meters, as tools write them: encodings, separators, names, units, lines."""

import codecs
import csv
import io
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_pynq.errors import RequestError
from llama_pynq.measure.meter_file import MeterFile
from llama_pynq.measure.rails import SensorLost

quiet = settings(
    derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "usb.csv"


def watts(file, content):
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return MeterFile(file).watts()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("time,watts\n1,2.5\n2,2.75\n", 2.75),
        ("watts\r\n2.5\r\n", 2.5),
        ("watts\r2.5\r", 2.5),
        ('"Time","Power [W]"\n"1","2.5"\n', 2.5),
        ("time, 'Power [W]'\n1, '2.5'\n", 2.5),
        ("# a meter\n; its owner\n\ntime,power (mW)\n1,2500\n# a pause\n\n", 2.5),
        ("P/W\n2.5\n", 2.5),
        ("Zeit;Leistung [W]\n1;2,75\n", 2.75),
        ("time;Power, W\n1;2,5\n", 2.5),
        ("time\tPower_mW\n1\t2,750.5\n", 2.7505),
        ("time|watts\n1|2.5\n", 2.5),
        ("time;Power in mW\n1;1.234,5\n", 1.2345),
        ("watts\n2,75\n", 2.75),
        ("U [V];I [A]\n5,1;0,5\n", 2.55),
        ("t,Voltage(V),Current(mA)\n1,5.0,500\n", 2.5),
        ("time,V,A\n1,5,.5\n", 2.5),
        ("volts,amperes,watts\n5,1,4.9\n", 4.9),  # the product leaves the phase out
        ("timestamp sample voltage_V current_A dp_V\n1 0 5.0 0.5 0.6\n", 2.5),
        ("power factor,Power [W],max power [W],Energy [Wh]\n1,2.5,9,3\n", 2.5),
        ("phase A,bus voltage V,bus current A\n9,5,0.5\n", 2.5),
        ("sep=;\ntime;watts\n1;2,5\n", 2.5),
        ("sep=;\nwatts\n2,5\n", 2.5),
        ("Input power [W]\n2,5\n", 2.5),
        ("time,Power [W] (mean)\n1,2.5\n", 2.5),
        ("# time,watts\n1,2.5\n", 2.5),  # numpy.savetxt
        (";watts\n0;2,5\n", 2.5),  # pandas
        ("time;watts\n;2,5\n", 2.5),
        ("time,watts,\n1,2.5,\n", 2.5),
        ("mW\n2500\n", 2.5),
        ("Milliwatts\n2500\n", 2.5),
        ("Zeit;Leistung (\u00b5W)\n1;2500000\n".encode("cp1252"), 2.5),
        ("P [\u03bcW]\n2.5e6\n", 2.5),
    ],
)
def test_meter_file_is_read_as_its_tool_writes_it(file, content, expected):
    assert watts(file, content) == pytest.approx(expected)


LVM = (
    "LabVIEW Measurement\t\r\nSeparator\tTab\r\nDate\t2020/01/01\r\n***End_of_Header***\t\r\n"
    "\t\r\nChannels\t1\r\nY_Unit_Label\tmW\r\n***End_of_Header***\t\r\n"
    "X_Value\tPower\tComment\r\n0\t1500\r\n"
)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Device: X\nDate: 2020\n\nTime (s),Power (W)\n0,1.5\n", 1.5),
        ("Serial,123\nRange,5 A\nTime,Power (mW)\n0,1500\n1,1600\n", 1.6),
        ("Power limit,5 W\nPower,5 W\nt,Volts,Amps\n0,5,.3\n", 1.5),
        ("Meter: M\nt,Power\ns,mW\n0,1500\n", 1.5),
        ("s,mW\nt,Power\n0,1500\n", 1.5),
        ("# s,mW\nt,Power\n0,1500\n", 1.5),
        ("Meter\n" * 99 + "t,Power [W]\n0,1.5\n", 1.5),
        (LVM, 1.5),
        ("# comment\n" * 20000 + "t,Power [W]\n0,1.5\n", 1.5),
        ("t,watts\n0,5.2 W\n", 5.2),
        ("t,watts\n0,OL\n1,5200mW\n", 5.2),
        ("t;V;A\n0;5,1 V;500 mA\n", 2.55),
        ("t,Power [mW]\n0,5.2 W\n", 5.2),
    ],
)
def test_meter_file_preamble_and_cells_with_units_are_read(file, content, expected):
    assert watts(file, content) == pytest.approx(expected)


def test_meter_file_header_that_is_still_to_come_is_waited_for(file):
    file.write_text("Device: X\nTime (s),Power (W)\n")
    meter = MeterFile(file)
    with pytest.raises(SensorLost, match="line 2: only the header so far"):
        meter.watts()
    file.write_text("Device: X\nTime (s),Power (W)\n0,1.5\n")
    assert meter.watts() == 1.5
    remarks = "# comment\n" * 20000
    with pytest.raises(SensorLost, match="line 20001: only the header so far"):
        watts(file, f"{remarks}t,Power [W]\n")
    with pytest.raises(
        RequestError, match="line 20001: there is no complete line yet below the comments"
    ):
        watts(file, remarks)


@pytest.mark.parametrize(
    ("header", "line", "expected"),
    [
        ("t,total_power_mW", "0,1500", 1.5),
        ("t,board_power_W", "0,1.5", 1.5),
        ("t,total_board_input_power_mW", "0,1500", 1.5),
        ("bus_voltage_V,current_mA", "5,300", 1.5),
        ("t,bus_voltage_V,shunt_voltage_mV,current_mA", "0,5,30,300", 1.5),
        ("t,usb_power_milliwatts", "0,1500", 1.5),
        ("t,power_in_mW", "0,1500", 1.5),
        ("power_in_mW", "1500", 1.5),
        ("total_power_mW", "1500", 1.5),
        ("VBUS_V,IBUS_mA", "5,300", 1.5),
        ("VBUS_V,IBUS_A", "5,.3", 1.5),
        ("VBUS(V),IBUS(A)", "5,.3", 1.5),
        ("t,Current Power (W)", "0,1.5", 1.5),
        ("t,current_power_mW,current_voltage_V", "0,1500,5", 1.5),
        ("t,max_board_power_W,board_power_W", "0,9,1.5", 1.5),
        ("motor_phase_A,bus_voltage_V,bus_current_A", "9,5,.3", 1.5),
    ],
)
def test_meter_file_names_of_several_words_are_understood(file, header, line, expected):
    assert watts(file, f"{header}\n{line}\n") == pytest.approx(expected)


@pytest.mark.parametrize(
    "header",
    ["shunt_voltage_mV,current_mA", "motor_phase_A,bus_voltage_V", "board_power_A", "IBUS_V,I_A"],
)
def test_meter_file_names_of_several_words_that_are_no_power_are_refused(file, header):
    with pytest.raises(RequestError, match="line 1 is .*it must name"):
        watts(file, f"{header}\n1,2\n")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Time,Voltage,Current\n(s),(V),(mA)\n0,5,500\n", 2.5),
        ("Time,Power\ns,mW\n0,5200\n", 5.2),
        ("t\tPower\r\n[s]\t[mW]\r\n0\t1500\r\n", 1.5),
        ("time,power\n# s,mW\n0,1500\n", 1.5),
        ("# time,power\n# s,mW\n0,1500\n", 1.5),
        ("# time,power\n# Units: (s),(mW)\n0,1500\n", 1.5),
        ("t,watts\ns,mW\n1,5\n", 0.005),
        ("t;Power\n;mW\n1;1500\n", 1.5),
        ("t power\ns mW\n1 1500\n", 1.5),
        ("Power\n\nmilliwatts\n1500\n", 1.5),
        ("t,Power [mW]\ns,mW\n1,1500\n", 1.5),
        ("t,watts\n# a pause\n1,5\n", 5),
        ("t,watts\n1,5\n# s,mW\n", 5),
    ],
)
def test_meter_file_row_of_units_scales_the_columns(file, content, expected):
    assert watts(file, content) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("t,Power\ns,MW\n1,5\n", "'MW' under 'Power' is no unit of watts"),
        ("t,Power\ns,dBm\n1,5\n", "'dBm' under 'Power' is no unit of watts"),
        ("Power\nnW\n5\n", "'nW' under 'Power' is no unit of watts"),
        ("t,Power\ns,BTU\n1,5\n", "'BTU' under 'Power' is no unit of watts"),
        ("t,Power\n# mW\n1,5\n", "'' under 'Power' is no unit of watts"),
        ("t,Power (W)\ns,mW\n1,5\n", "'mW' under 'Power (W)' is another unit than the header's"),
        ("Voltage,Current\nV,mW\n5,1\n", "'mW' under 'Current' is no unit of amperes"),
    ],
)
def test_meter_file_row_of_units_that_cannot_be_applied_is_named(file, content, text):
    with pytest.raises(RequestError) as error:
        watts(file, content)
    assert str(error.value) == f"{file}, line 2 is a row of units, but {text}"


@pytest.mark.parametrize(
    "content",
    [
        "# power in mW\nt,Power\n0,1500\n",
        "# units: mW\nt,Power\n0,1500\n",
        "t,Power\n# Power unit = mW\n0,1500\n",
        "Unit: mW\nt,Power\n0,1500\n",
    ],
)
def test_meter_file_unit_in_words_is_refused(file, content):
    with pytest.raises(
        RequestError, match=r"line 2: 'Power' has no unit, and '.*mW' is not applied"
    ):
        watts(file, content)
    assert watts(file, content.replace("Power\n", "Power [mW]\n")) == 1.5
    assert watts(file, content.replace("mW", "W")) == 1500


def test_meter_file_row_of_units_may_come_after_the_header_was_read(file):
    file.write_text("t,Power\n")
    meter = MeterFile(file)
    for text in ("s,m", "s,mW\n"):
        file.write_text(f"t,Power\n{text}")
        with pytest.raises(SensorLost, match="only the header so far"):
            meter.watts()
    file.write_text("t,Power\ns,mW\n1,1500\n")
    assert meter.watts() == 1.5


@pytest.mark.parametrize(
    "content",
    [
        "t;Power [mW]\n0,5;1.234\n",
        "t;Power [mW]\n0,5;1.234\n1;2.345\n",  # the comma is in another line
        "t;Power [mW]\n1;2.345\n0,5;1.234\n",
        "t;Power [mW]\n0,5;1.234 mW\n",
        "Power [mW]\n0,5\n1.234\n",
        "t\tU [mV]\tI [A]\n1\t5.000\t0,5\n",
        "t;Power [mW];E\n0;1.234;1.234,5\n",
        't,Power [mW]\n"0,5",1.234\n',
    ],
)
def test_meter_file_point_that_may_separate_thousands_is_never_guessed(file, content):
    with pytest.raises(
        SensorLost, match=r"line \d has '\d\.\d{3}' in .*its point may be a decimal"
    ):
        watts(file, content)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("t;Power [mW]\n0,5;1.2345\n", 0.0012345),
        ("t;Power [mW]\n0,5;0.234\n", 0.000234),
        ("t;Power [mW]\n0,5;2.5\n1,5;1.234\n", 0.001234),  # the column has decimal points
        ("t;Power [mW]\n0,5;1.234,5\n", 1.2345),
        ("t;Power [mW]\n0,5;1.234.567\n", 1234.567),
        ("t;Power [mW]\n0.5;1.234\n", 0.001234),
        ("t,Power [mW]\n1,1.234\n", 0.001234),
        ("12:00:00,5;Power [mW]\n12:00:00,5;1.234\n", 0.001234),
    ],
)
def test_meter_file_point_that_other_digits_explain_is_read(file, content, expected):
    assert watts(file, content) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("encoding", "bom"),
    [
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-32-le", codecs.BOM_UTF32_LE),
        ("utf-32-be", codecs.BOM_UTF32_BE),
        ("utf-16-le", b""),
        ("utf-16-be", b""),
    ],
)
def test_meter_file_in_any_unicode_counts_lines_that_have_ended(file, encoding, bom):
    content = bom + "Power [W]\n2.5\n3.5\n".encode(encoding)
    file.write_bytes(content)
    meter = MeterFile(file)
    width = len("\n".encode(encoding))
    for cut in range(1, 4 * width):  # the last line is in the writing
        file.write_bytes(content[:-cut])
        assert meter.watts() == 2.5
    file.write_bytes(content)
    assert meter.watts() == 3.5


def test_meter_file_that_is_long_is_read_from_its_end(file):
    for encoding in ("utf-8", "utf-16"):
        lines = "time,Power [W]\n" + "1,2.5\n" * 40000
        assert watts(file, f"{lines}2,7.5\n".encode(encoding)) == 7.5
        with pytest.raises(SensorLost, match=r"usb\.csv, line 40002 has 'x'"):
            watts(file, f"{lines}2,x\n".encode(encoding))
        assert watts(file, f"{lines}{'# pause' * 12000}\n".encode(encoding)) == 2.5


def test_meter_file_that_the_tool_begins_anew_is_read_with_its_new_header(file):
    file.write_text("time,watts\n1,2.5\n")
    meter = MeterFile(file)
    assert meter.watts() == 2.5
    file.write_text("")
    with pytest.raises(SensorLost, match=r"usb\.csv, line 1: the file is empty"):
        meter.watts()
    file.write_text("time;Power [mW];note\n1;3500;\n")
    assert meter.watts() == 3.5


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("watts\n", "line 1: only the header so far: is the meter running"),
        ("# a\ntime,watts\n\n# b\n", "line 2: only the header so far"),
        ("watts\n2.5", "line 1: only the header so far"),
        ("watts\nmany\n", "line 2 has 'many' in the column 'watts': not a number"),
        ("a,watts\n1,2\n\n1,\n", "line 4 has nothing in the column 'watts'"),
        ("time,watts\n5\n", "line 2 has nothing in the column 'watts'"),
        ("CH1,Volts,Amps\n5,1\n", "line 2 has nothing in the column 'Amps'"),
        ("time,watts\n1,2,75\n", "line 2 has 3 cells, the header 2; numbers with a decimal comma"),
        ("watts\n2,750\n", "comma may be a decimal sign or a separator of thousands"),
        ('time,watts\n1,"2,750"\n', "comma may be a decimal sign or a separator of thousands"),
        ("watts\n5 V\n", "'5 V' in the column 'watts': its unit is none of watts"),
        ("watts\nnan\n", "'nan' in the column 'watts': not a number"),
        ("watts\n1_0\n", "'1_0' in the column 'watts': not a number"),
        ("watts\n-\n", "'-' in the column 'watts': not a number"),
        ("time,watts\n1,2\0\n", "line 2 "),
    ],
)
def test_meter_file_line_without_a_power_is_named(file, content, text):
    with pytest.raises(SensorLost) as error:
        watts(file, content)
    assert f"{file}, {text}" in str(error.value) or (
        f"{file}, line" in str(error.value) and text in str(error.value)
    )


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "line 1: the file is empty: it must name a column 'watts'"),
        ("watts", "line 1: there is no complete line yet"),
        ("# watts are below\n", "line 2: there is no complete line yet"),
        ("a,b\n1,2\n", "line 1 is 'a,b': it must name a column 'watts', or 'volts' and 'amperes'"),
        ("\n# x\n1,2.5\n", "line 3 is '1,2.5': it must name"),
        ("Meter\n" * 100 + "watts\n1\n", "line 1 is 'Meter': it must name"),
        ("Device: X\n0,5.2 W\n1,5.3 W\n", "line 1 is 'Device: X': it must name"),
        ("volts\n5\n", "line 1 is 'volts': it must name"),
        ("Power (dBm)\n1\n", "line 1 is 'Power (dBm)': it must name"),
        ("POWER (MW)\n1\n", "line 1 is 'POWER (MW)': it must name"),
        ("Energy [Wh]\n1\n", "line 1 is 'Energy [Wh]': it must name"),
        ("CH1 (W),CH2 (W)\n1,2\n", "line 1: the columns 'CH1 (W)' and 'CH2 (W)' both hold watts"),
        ("watts,watts\n1,2\n", "line 1: the columns 'watts' and 'watts' both hold watts"),
    ],
)
def test_meter_file_without_one_power_is_refused(file, content, text):
    with pytest.raises(RequestError) as error:
        watts(file, content)
    assert str(error.value).startswith(f"{file}, {text}")


# ---- properties -----------------------------------------------------------------------

UNITS = {"W": 1, "mW": 1e-3, "\u00b5W": 1e-6, "kW": 1e3}
HEADERS = ["{} [{}]", "{} ({})", "{}/{}", "{}_{}", "{} {}", "{} in {}"]


@quiet
@given(
    power=st.floats(0.001, 9999),
    unit=st.sampled_from(list(UNITS)),
    header=st.sampled_from(HEADERS),
    name=st.sampled_from(["power", "Power", "P"]),
    separator=st.sampled_from([",", ";", "\t", "|"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    others=st.integers(0, 3),
    comma=st.booleans(),
    remark=st.sampled_from(["", "# watts: see below", "; a comment"]),
)
def test_meter_file_of_any_dialect_gives_the_same_power(
    file, power, unit, header, name, separator, quoting, end, encoding, others, comma, remark
):
    if header.startswith("{} in") and separator == " ":
        return
    number = f"{power / UNITS[unit]:.4f}"
    comma = comma and separator != ","
    out = io.StringIO()
    write = csv.writer(out, delimiter=separator, quoting=quoting, lineterminator=end)
    write.writerow([*(f"n{i}" for i in range(others + 1)), header.format(name, unit)])
    for value in ("1.5", number):
        write.writerow([*"1234"[: others + 1], value.replace(".", ",") if comma else value])
    text = f"{remark}{end if remark else ''}{out.getvalue()}9"
    read = watts(file, text.encode(encoding))
    assert read == pytest.approx(float(number) * UNITS[unit])


@quiet
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text("watts,;\t|\n\r\"'#[]()VAmW/0123456789.-e ", max_size=80).map(str.encode),
        st.text("0123456789.,;-eE\"'\n \0#", max_size=40).map(lambda s: b"t,watts\n" + s.encode()),
    )
)
def test_meter_file_of_anything_gives_a_number_or_the_packages_error(file, content):
    try:
        assert math.isfinite(watts(file, content)) or b"e" in content.lower()  # 1e999
    except (SensorLost, RequestError) as error:
        assert str(error).startswith(f"{file}, line ")
