"""The mapping file of DroNet, the two models that it joins, and what is no mapping."""

from pathlib import Path

from parity import ParityError, read_mapping

import pytest

CSV = Path(__file__).parents[2] / "keras_torch_mapping.csv"

# --- Files that are no mapping --------------------------------------------------------------------------------------


def write(folder, content):
    path = folder / "names.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_mapping_is_read_as_people_write_it(tmp_path):
    """With a byte order mark, Windows line ends, blanks, quotes, empty lines, and no line end at the end."""
    lines = ["\ufeffkeras,torch", "a/kernel , a.weight", "", ",", '"b,c/bias","a.bias"', " ,n.x"]
    path = write(tmp_path, "\r\n".join(lines))
    mapping = read_mapping(str(path))
    assert mapping.to_dict("index") == {
        2: {"keras": "a/kernel", "torch": "a.weight"},
        5: {"keras": "b,c/bias", "torch": "a.bias"},
        6: {"keras": "", "torch": "n.x"},
    }
    assert mapping.attrs["source"] == "names.csv"


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        ("", ["line 1: the columns must be ['keras', 'torch'], not []"]),
        ("\n", ["line 1: the columns must be ['keras', 'torch'], not []"]),
        ("keras,torch\n", ["the file has no rows"]),
        ("keras,torch\n\n,\n", ["the file has no rows"]),
        ("torch,keras\na,b\n", ["line 1: the columns must be ['keras', 'torch'], not ['torch', 'keras']"]),
        (
            "keras,torch,note\na,b,c\n",
            ["line 1: the columns must be ['keras', 'torch'], not ['keras', 'torch', 'note']"],
        ),
        ("a/kernel,a.weight\n", ["line 1: the columns must be ['keras', 'torch'], not ['a/kernel', 'a.weight']"]),
        ("keras;torch\na;b\n", ["line 1: the columns must be ['keras', 'torch'], not ['keras;torch']"]),
        ("keras,torch\na,b,c\n", ["line 2: 2 fields expected, 3 found: ['a', 'b', 'c']"]),
        ("keras,torch\na,b\na\n", ["line 3: 2 fields expected, 1 found: ['a']"]),
        ("keras,torch\na,b\nc,\n", ["line 3: the torch field is empty (keras: c)"]),
        (
            "keras,torch\na\n\nb,c\nd,\ne,f,g\n",
            [
                "line 2: 2 fields expected, 1 found: ['a']",
                "line 5: the torch field is empty (keras: d)",
                "line 6: 2 fields expected, 3 found: ['e', 'f', 'g']",
            ],
        ),
        ('keras,torch\na,b\nc,"d\n', ["line 3: not CSV: unexpected end of data"]),
        ('keras,torch\na,"b"c\n', ["line 2: not CSV: ',' expected after '\"'"]),
        ('"keras,torch\na,b\n', ["line 2: not CSV: unexpected end of data"]),
        (b"keras,torch\na,\xe4\n", ["the file is not UTF-8 text: invalid continuation byte at byte 14"]),
        (
            b"keras,torch\n" + 9999 * b"a,b\n" + b"\xe4,b\n",
            ["the file is not UTF-8 text: invalid continuation byte at byte 40008"],
        ),
        ("keras,torch\na,b\n".encode("utf-16"), ["the file is not UTF-8 text: invalid start byte at byte 0"]),
    ],
)
def test_what_is_no_mapping_is_refused_with_the_line(tmp_path, content, faults):
    with pytest.raises(ParityError) as caught:
        read_mapping(write(tmp_path, content))
    assert caught.value.faults == faults
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    assert str(caught.value) == "\n  ".join([f"names.csv: {count}", *faults])


def test_a_file_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ParityError, match=r"^no.csv: 1 fault\n  the file cannot be read: No such file"):
        read_mapping(tmp_path / "no.csv")


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(ParityError, match="the file cannot be read: "):
        read_mapping(tmp_path)


def test_the_exception_is_a_value_error_so_that_callers_may_catch_either():
    error = ParityError("x.csv", (fault for fault in ("one", "two")))
    assert isinstance(error, ValueError)
    assert error.faults == ["one", "two"]
    assert str(error) == "x.csv: 2 faults\n  one\n  two"
