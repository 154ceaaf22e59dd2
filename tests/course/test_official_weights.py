"""The official weights: taken from where they are, checked by their SHA-256, fetched only if they must be."""

import subprocess
import sys
from pathlib import Path

from course.official_weights import SHA256, URL, at_hand, official_weights

import pooch
import pytest


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("DRONET_H5", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / project)
    return tmp_path / "keras-torch-parity"


def test_they_are_at_hand_where_a_variable_or_the_cache_has_them(empty_cache, monkeypatch):
    assert not at_hand()
    monkeypatch.setenv("DRONET_H5", "a copy")
    assert at_hand()
    monkeypatch.setenv("DRONET_H5", "")
    assert not at_hand()
    empty_cache.mkdir()
    (empty_cache / "dronet_model_weights.h5").write_bytes(b"")
    assert at_hand()


def test_they_are_fetched_into_the_cache_and_checked(empty_cache, monkeypatch):
    asked = []
    monkeypatch.setattr(pooch, "retrieve", lambda *args, **more: asked.append(args) or "the file")
    assert official_weights() == Path("the file")
    assert asked == [(URL, SHA256, "dronet_model_weights.h5", empty_cache)]
    assert URL.startswith("https://")


@pytest.mark.parametrize("error", [ConnectionError("no network"), ValueError("the hash of the file does not match")])
@pytest.mark.usefixtures("empty_cache")
def test_a_failed_download_is_one_error_that_names_the_address(error, monkeypatch):
    def fail(*args, **more):
        raise error

    monkeypatch.setattr(pooch, "retrieve", fail)
    with pytest.raises(ValueError, match=str(error)) as raised:
        official_weights()
    assert URL in str(raised.value)


def test_another_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "other.h5"
    path.write_bytes(b"other weights")
    monkeypatch.setenv("DRONET_H5", str(path))
    with pytest.raises(ValueError, match=rf"other\.h5 is another file: its SHA-256 is .*, not {SHA256}"):
        official_weights()
    path.unlink()
    with pytest.raises(ValueError, match=r"other\.h5 cannot be had"):
        official_weights()


def test_the_file_that_the_variable_names_is_taken_where_it_lies(tmp_path, monkeypatch):
    path = tmp_path / "copy.h5"
    path.write_bytes(b"")
    monkeypatch.setenv("DRONET_H5", str(path))
    monkeypatch.setattr("course.official_weights.SHA256", pooch.file_hash(path))
    monkeypatch.setattr(pooch, "retrieve", lambda *args, **more: pytest.fail("fetched"))
    assert official_weights() == path


def test_pytest_starts_without_the_frameworks():
    code = "import sys, course.official_weights, course.pages.pytest_plugin; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "pooch" in loaded
    assert not {"keras", "tensorflow", "torch", "parity", "pandas", "matplotlib"} & set(loaded)
