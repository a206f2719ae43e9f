"""Read rows of csv and tsv files one by one, in bounded memory, with any line end and any encoding that is detectable.

Training, pre-training, scoring and the demo all read through this file. An unreadable row is still returned: it has a
`problem` instead of values, and reading continues with the next row.

This file imports nothing of the project. `space/delimited.py` is a copy of it, because a Space has no checkout.
"""

import codecs
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

# Meaning of a quote: decided by the file's first rows (auto), as in RFC 4180 (minimal), an ordinary character (none).
QUOTING = ("auto", "minimal", "none")
QUOTING_HELP = (
    "Meaning of a double quote in csv and tsv. minimal: it encloses a text with separators, line breaks or doubled "
    "quotes. none: it is an ordinary character. auto (the default): whichever fits the file's first rows."
)
LONGEST_ROW = 2**24  # characters
_SAMPLE = 2**22  # characters to read for `auto`
_DELIMITERS = {".csv": ",;\t|", ".tsv": "\t;,|"}
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it starts with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SURROGATE = re.compile("[\ud800-\udfff]")

# Bytes that cannot be decoded become lone surrogates, which `broken` finds.
codecs.register_error("rows", lambda e: ("".join(chr(0xDC00 + byte) for byte in e.object[e.start : e.end]), e.end))


class UnreadableTable(ValueError):
    """An error about a whole file. The message does not name the file."""


class Record(NamedTuple):
    """One row of a file.

    Attributes:
        number: Row number in the file, from 1. The header, blank lines and rows without values are counted.
        place: The position for messages: `row 3`, `row 3 (line 5)` if earlier rows span several lines, or `line 3` in a
            text file.
        values: Values by column, or `None` if there is a problem.
        problem: What is wrong, without the row's text.
    """

    number: int
    place: str
    values: dict[str, Any] | None
    problem: str | None = None


def broken(value: object) -> str | None:
    """Return what is wrong with the characters of a value, also inside lists and dicts, or `None` if nothing is."""
    if isinstance(value, str):
        if value.isascii() or not (found := _SURROGATE.search(value)):
            return None
        code = ord(found[0])
        if 0xDC80 <= code <= 0xDCFF:
            return f"not UTF-8 (byte 0x{code - 0xDC00:02x}); save the file with encoding UTF-8"
        return f"not UTF-8: half of a character (\\u{code:04x}); want whole characters"
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return next((wrong for each in value if (wrong := broken(each))), None) if isinstance(value, list) else None


def delimited_rows(
    file: BinaryIO,
    suffix: str,
    *,
    quoting: str = "auto",
    header: bool = True,
    check: Callable[[list[str]], None] = lambda names: None,
) -> Iterator[Record]:
    """Yield every row of a csv or tsv file as a [`Record`].

    Columns are separated by commas (.csv) or tabs (.tsv). If the header has none of these, or the row below it fits
    only with another one, the separator is a semicolon, a bar, or the other of the two. Spreadsheets leave empty rows
    and unnamed empty columns at the end, which are skipped, as are blank lines. The encoding is UTF-8, or UTF-16 or
    UTF-32 with a byte order mark. Lines end in LF, CRLF or CR.

    Args:
        file: Buffered, at its beginning.
        suffix: `.csv` or `.tsv`.
        quoting: One of `QUOTING`. Where quotes are syntax, a row with an unclosed quote is a problem, and the next line
            starts the next row.
        header: Whether the first row names the columns. If not, they are `column_1`, `column_2`, ...
        check: Called once with the column names, before the first row. It may raise.

    Raises:
        UnreadableTable: if there is no header, or it names a column twice.
    """
    return iter(_Delimited(decoded(file), _DELIMITERS[suffix], quoting, header, check))


# ---- Lines --------------------------------------------------------------------------------------------------------
def decoded(file: BinaryIO) -> io.TextIOWrapper:
    start = file.peek(4)[:4]
    encoding = next((encoding for mark, encoding in _MARKS if start.startswith(mark)), "utf-8-sig")
    zeros = [byte == 0 for byte in start]
    if zeros == [False, True] * 2:  # ASCII letters in UTF-16 without a mark
        encoding = "utf-16-le"
    elif zeros == [True, False] * 2:
        encoding = "utf-16-be"
    return io.TextIOWrapper(file, encoding, errors="rows", newline="")


def too_long() -> str:
    return f"a row of more than {LONGEST_ROW:,} characters"


def lines_of(text: io.TextIOWrapper, first: str = "") -> Iterator[str | None]:
    """Yield lines with their line ends, `None` for a line that is too long; `first` is the start of the first line."""
    before = ""
    while line := first if first.endswith(("\r", "\n")) else first + text.readline(LONGEST_ROW + 1):
        first, piece, whole = "", line, len(line) <= LONGEST_ROW
        while not whole and not piece.endswith(("\r", "\n")) and (more := text.readline(2**20)):
            piece = more
        if not (before.endswith("\r") and piece == "\n"):  # else the second half of a CRLF that the length limit split
            yield line if whole else None
        before = piece


# ---- Rows ----------------------------------------------------------------------------------------------------------
class _Parsed(NamedTuple):
    fields: list[str]
    lines: int
    problem: str | None = None
    quoted: int = 0  # number of quoted fields
    doubled: bool = False  # whether a quoted field contains a quote


class _Delimited:
    """An iterator over the rows of csv or tsv. It parses no line more than twice, even after an unclosed quote."""

    def __init__(self, text: io.TextIOWrapper, delimiters: str, quoting: str, header: bool, check: Callable):
        self._source, self._delimiters = lines_of(text), delimiters
        self._quoting, self._header, self._check = quoting, header, check
        self._held: list[str | None] = []  # lines that were read ahead
        self._damage: Exception | None = None  # error to raise after the held lines
        self._next = 0  # index of the next record's first line
        self._until = 0  # lines before this index follow an unclosed quote, so each is a record by itself
        self._delimiter, self._width, self._literal = "", 0, False
        self._seen: list[set[str]] = []  # for each column, values from lines without quotes
        self._numbers: list[bool] = []  # for each column, whether these are all numbers

    def __iter__(self) -> Iterator[Record]:
        names: list[str] = []
        blank: list[Record] = []
        for number, line, parsed in self._records():
            if not names:
                names = self._names(parsed)
                self._check(names)
                if self._header:
                    continue
            place = f"row {number}" + (f" (line {line})" if line != number else "")
            record = self._row(parsed, names, number, place)
            if not any(parsed.fields) and not parsed.quoted and not parsed.problem and len(blank) < 10_000:
                blank.append(record)  # a spreadsheet leaves these at the end; kept if a row follows
            else:
                yield from blank
                yield record
                blank = []
        if not names:
            raise UnreadableTable(f"empty; want {'a header and ' if self._header else ''}rows")

    def _records(self) -> Iterator[tuple[int, int, _Parsed]]:
        """Yield row number, line number and fields of each record that is not blank, including the header."""
        number, line = 0, 1
        while (raw := self._line(self._next)) != "":
            number, lines = number + 1, 1
            if raw is None:
                yield number, line, _Parsed([], 1, too_long())
            elif not self._width and (
                told := re.fullmatch(r'"?sep=(.)"?\s*', raw)
            ):  # Excel's line that names the separator
                self._delimiter = told[1]
            elif raw.strip("\r\n"):
                parsed = self._record() if self._width else self._first(raw)
                lines = parsed.lines
                yield number, line, parsed
            self._next += lines
            line += lines
            if self._next > 4096 and self._next * 2 > len(self._held):
                del self._held[: self._next]
                self._until -= self._next
                self._next = 0
        if self._damage is not None:
            raise self._damage

    def _line(self, index: int) -> str | None:
        """Return a line by index: `None` if it is too long, an empty string after the last one."""
        while len(self._held) <= index:
            try:
                line = next(self._source, "")
            except Exception as error:  # a damaged file; rows before the damage come first
                line, self._damage = "", error
            if line == "":
                return ""
            self._held.append(line)
        return self._held[index]

    def _first(self, raw: str) -> _Parsed:
        """Return the first record, after detecting the delimiter and whether quotes are syntax."""
        if not self._delimiter:
            own, *others = self._delimiters
            unquoted = re.sub('"[^"]*"', "", raw)
            other = max(others, key=unquoted.count)
            is_other = self._header and other in unquoted
            if is_other and own in unquoted:  # in the name of a column, of which kind is told by the row below
                is_other = self._fits(other) and not self._fits(own)
            self._delimiter = other if is_other else own
        parsed = self._parse(self._next)
        if parsed.problem and self._header and self._quoting != "none":
            return parsed
        self._width = len(parsed.fields)
        self._seen = [set() for _ in parsed.fields]
        self._literal = self._quoting == "none" or (self._quoting == "auto" and self._quotes_are_literal(parsed))
        return _Parsed(self._split(raw), 1) if self._literal else parsed

    def _fits(self, delimiter: str) -> bool:
        """Return whether the header and the row below it have the same number of fields with a delimiter."""
        self._delimiter = delimiter
        header = self._parse(self._next)
        row = self._parse(self._next + header.lines) if self._line(self._next + header.lines) else None
        return bool(row and not header.problem and not row.problem and len(header.fields) == len(row.fields))

    def _quotes_are_literal(self, first: _Parsed) -> bool:
        """Return whether the first rows make more sense with quotes as ordinary characters."""
        end, size = self._next + first.lines, 0
        while size < _SAMPLE and (line := self._line(end)) != "":
            end, size = end + 1, size + len(line or "")
            if line and '"' not in line and len(fields := self._split(line)) == self._width:
                for seen, value in zip(self._seen, fields, strict=True):
                    seen.add(value)
        self._numbers = [bool(seen) and all(map(str.isdigit, seen)) for seen in self._seen]
        if first.quoted and self._header:
            return False
        literal = syntax = either = 0
        index, until = self._next + first.lines if self._header else self._next, 0
        while index < end:
            line = self._held[index]
            if not line or '"' not in line:
                index += 1
                continue
            parsed = self._parse(index, index < until)
            is_row = len(self._split(line)) == self._width
            if parsed.problem:
                literal += is_row
                until = max(until, index + parsed.lines - 1)
                index += 1
                continue
            if parsed.lines > 1:
                swallows = self._swallows(parsed, index)
                literal, syntax = literal + swallows, syntax + (not swallows)
            elif not is_row or parsed.doubled or parsed.quoted > 1:
                syntax += len(parsed.fields) == self._width
            else:
                either += parsed.quoted
            index += parsed.lines
        return literal > 4 * syntax + either / 10

    def _swallows(self, parsed: _Parsed, index: int) -> bool:
        """Return whether each line of a record of several lines looks like a row."""
        return not parsed.doubled and all(self._is_row(self._held[index + i]) for i in range(parsed.lines))

    def _is_row(self, line: str | None) -> bool:
        """Return whether a line inside quotes looks like a row.

        It must have as many separators as the header. Texts also contain commas, so for these one value must also be
        known from other rows, or be a number in a numeric column.
        """
        fields = self._split(line or "")
        if self._width == 1 or len(fields) != self._width:
            return False
        columns = zip(fields, self._seen, self._numbers, strict=True)
        return self._delimiter == "\t" or any(
            field in seen or (numbers and field.isdigit()) for field, seen, numbers in columns
        )

    def _split(self, line: str) -> list[str]:
        return line.rstrip("\r\n").split(self._delimiter)

    def _record(self) -> _Parsed:
        line = self._held[self._next]
        if self._literal or '"' not in line:
            return _Parsed(self._split(line), 1)
        parsed = self._parse(self._next, self._next < self._until)
        inside = [self._held[self._next + i] for i in range(parsed.lines)]
        if self._quoting == "auto" and not parsed.problem and parsed.lines > 1:
            if self._swallows(parsed, self._next):
                problem = f"a quote that is closed {parsed.lines - 1} lines later, each of which looks like a row"
                parsed = parsed._replace(problem=f"{problem}; if they are one text, say --quoting minimal")
            elif len(parsed.fields) != self._width and any(map(self._is_row, inside[1:])):
                parsed = parsed._replace(problem="a quote is opened and not closed")
        if not parsed.problem:
            return parsed
        self._until = max(self._until, self._next + parsed.lines - 1)
        hint = "a quote inside quotes is doubled" + (", or say --quoting none" if self._quoting == "auto" else "")
        return _Parsed([], 1, f"{parsed.problem}; {hint}")

    def _parse(self, index: int, alone: bool = False) -> _Parsed:
        """Return the record that starts at a line, parsed as in RFC 4180. With `alone`, it must end on that line."""
        line, delimiter = self._line(index), self._delimiter
        fields: list[str] = []
        position, lines, size, quoted, doubled = 0, 1, 0, 0, False
        while True:
            if not line.startswith('"', position):
                end = line.find(delimiter, position)
                fields.append(line[position:end] if end >= 0 else line[position:].rstrip("\r\n"))
                if end < 0:
                    return _Parsed(fields, lines, None, quoted, doubled)
                position = end + 1
                continue
            quoted, parts, begin = quoted + 1, [], position + 1
            search = begin
            while (end := line.find('"', search)) < 0 or line.startswith('"', end + 1):
                if end >= 0:
                    doubled, search = True, end + 2
                    continue
                parts.append(line[begin:])
                size += len(line)
                line = "" if alone else self._line(index + lines)
                if not line or size + len(line) > LONGEST_ROW:
                    problem = too_long() if line or line is None else "a quote is opened and not closed"
                    return _Parsed(fields, lines, problem, quoted, doubled)
                lines, begin, search = lines + 1, 0, 0
            fields.append("".join([*parts, line[begin:end]]).replace('""', '"'))
            position = end + 2
            if (after := line[end + 1 : position]) in "\r\n":  # also true for an empty string
                return _Parsed(fields, lines, None, quoted, doubled)
            if after != delimiter:
                return _Parsed(fields, lines, f"{delimiter!r} expected after '\"'", quoted, doubled)

    def _names(self, first: _Parsed) -> list[str]:
        if first.problem:
            raise UnreadableTable(f"row 1: {first.problem}; want {'a header' if self._header else 'rows'}")
        fields = first.fields
        if not self._header:
            return [f"column_{number}" for number in range(1, len(fields) + 1)]
        while fields and not fields[-1].strip():
            fields = fields[:-1]
        names = [name if name.strip() else f"column_{number}" for number, name in enumerate(fields, 1)]
        check_names(names)
        return names

    def _row(self, parsed: _Parsed, names: list[str], number: int, place: str) -> Record:
        fields, problem = parsed.fields, parsed.problem
        if not problem and (len(fields) < len(names) or any(fields[len(names) :])):
            problem = f"{len(fields)} fields; want {len(names)}"
            if len(fields) > len(names):
                problem += f" (a text that holds {self._delimiter!r} is put in quotes)"
        return Record(number, place, None if problem else dict(zip(names, fields, strict=False)), problem)


def check_names(names: Iterable[str]) -> None:
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise UnreadableTable(f"the header names {twice!r} twice")
    if not names:
        raise UnreadableTable("the header names no column")
