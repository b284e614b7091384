"""One part of a live table: an Arrow IPC stream, and beside it the checksum of each of its messages.

    part-00000-r0.arrow   the schema, then one record batch an append, as any Arrow reader takes it
    part-00000-r0.sums    a line for the schema and for each batch: where it ends, its rows, its CRC-32, the line's own

A line is written before its batch. So a process that dies leaves at most a last batch cut short, which is left out when
read; whatever else differs is damage, and a DataError. Arrow sees no byte that was not checked: it may end the process
on a spoiled one. Streams of earlier versions have no .sums: these are tried in a process of their own.
"""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pyarrow as pa

from diagnostics.errors import DataError

MARK = b"\xff\xff\xff\xff"  # begins every message
END = MARK + bytes(4)  # ends a stream that was closed
_TRIAL = (
    "import sys, pyarrow as pa; t = pa.ipc.open_stream(pa.BufferReader(sys.stdin.buffer.read())).read_all(); "
    "t.validate(full=True)"
)


class Stream:
    """Writes one part; every batch is with the operating system when `append` returns."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.end = path, 0
        self.sums = open(path.with_suffix(".sums"), "xb", buffering=0)
        self.file = open(path, "xb", buffering=0)
        self._write(schema.serialize().to_pybytes(), 0)

    def append(self, batch: pa.RecordBatch) -> None:
        """Add one record batch."""
        self._write(batch.serialize().to_pybytes(), batch.num_rows)

    def close(self) -> None:
        """End the stream; its batches stay readable whether or not this is reached."""
        self._write(END, 0)
        self.file.close()
        self.sums.close()

    def _write(self, data: bytes, rows: int) -> None:
        if not os.fstat(self.file.fileno()).st_nlink:
            raise FileNotFoundError(self.path)  # else the rows would go to a file that nobody finds
        self.end += len(data)
        line = f"{self.end} {rows} {zlib.crc32(data):08x}"
        for file, content in ((self.sums, f"{line} {zlib.crc32(line.encode()):08x}\n".encode()), (self.file, data)):
            left = memoryview(content)
            while left:
                left = left[file.write(left) :]


def read_stream(path: Path) -> tuple[pa.Table, bool]:
    """Every whole batch of a part, and whether its end was cut off by a crash. Raises DataError where it is damaged."""
    try:
        data = path.read_bytes()  # before the sums, which are ahead of it while the run lives
        sums = path.with_suffix(".sums")
        whole, rows, cut = _by_sums(path, data, sums.read_bytes()) if sums.exists() else _by_frames(path, data)
        if not whole:
            return pa.table({}), cut  # the schema was cut: nothing was logged in this part yet
        table = pa.ipc.open_stream(pa.BufferReader(data[:whole])).read_all()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    if rows is not None and table.num_rows != rows:
        raise _damaged(path, f"{table.num_rows} rows instead of {rows}")
    return table, cut


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"{path}: not readable as an Arrow stream ({what}). The file is damaged; nothing was changed.")


def _by_sums(path: Path, data: bytes, sums: bytes) -> tuple[int, int, bool]:
    """Bytes and rows of the whole messages, each held against its line, and whether what follows was cut."""
    start = total = 0
    for number, line in enumerate(sums.split(b"\n")[:-1], 1):  # a last line without its newline was cut by a crash
        text, _, check = line.rpartition(b" ")
        if check != b"%08x" % zlib.crc32(text):
            raise _damaged(path.with_suffix(".sums"), f"line {number}")
        end, rows, crc = text.split()
        if int(end) > len(data):
            return start, total, True
        if zlib.crc32(data[start : int(end)]) != int(crc, 16):
            raise _damaged(path, f"checksum of bytes {start} to {int(end)}")
        start, total = int(end), total + int(rows)
    if start < len(data):
        raise _damaged(path.with_suffix(".sums"), f"it ends at byte {start} of {len(data)}")
    return start, total, False


def _by_frames(path: Path, data: bytes) -> tuple[int, None, bool]:
    """Bytes of the whole messages of a stream without sums, tried in another process, and whether the last was cut."""
    start, size, ended = 0, 0, False
    while start < len(data) and not ended:
        ended = data[start:] == END
        end, size = (start, size) if ended else _message_end(path, data, start, size)
        if end > len(data):
            break
        start = end
    trial = subprocess.run([sys.executable, "-P", "-c", _TRIAL], input=data[:start], capture_output=True, check=False)
    if start and trial.returncode:
        said = trial.stderr.decode(errors="replace").strip().splitlines() or ["the reader crashed"]
        raise _damaged(path, said[-1])
    return start, None, start < len(data) and not ended


def _message_end(path: Path, data: bytes, start: int, before: int) -> tuple[int, int]:
    """Where the message that starts here ends, past the end of the data where it was cut; and its metadata's size.

    before: that size of the message before. It is equal for all batches, so a cut one of another size is damaged.
    """
    size = int.from_bytes(data[start + 4 : start + 8], "little", signed=True)
    if not MARK.startswith(data[start : start + 4]):
        raise _damaged(path, f"no message at byte {start}")
    if len(data) < start + 8:
        return start + 8, size
    if size <= 0 or size % 8:
        raise _damaged(path, f"a wrong length at byte {start + 4}")
    end = start + 8 + size
    if end <= len(data):
        try:
            body, buffers = _body(data[start + 8 : end])
        except struct.error:
            raise _damaged(path, f"a wrong message at byte {start}") from None
        if not 0 <= body - buffers < 64:
            raise _damaged(path, f"a wrong body length in the message at byte {start}")
        end += body
    elif start and size != before and before != _schema_size(data):
        raise _damaged(path, f"a wrong length at byte {start + 4}")
    return end, size


def _schema_size(data: bytes) -> int:
    return int.from_bytes(data[4:8], "little")


def _body(metadata: bytes) -> tuple[int, int]:
    """Length of a message's body, and where its last buffer ends (Message and RecordBatch in Arrow's Message.fbs)."""

    def read(kind: str, at: int) -> int:
        return struct.unpack_from(kind, metadata, at)[0]

    def place(table: int, number: int) -> int:
        """Where a field of a table stands; 0 where it has its default."""
        vtable = table - read("<i", table)
        slot = 4 + 2 * number
        offset = read("<H", vtable + slot) if slot < read("<H", vtable) else 0
        return table + offset if offset else 0

    message = read("<I", 0)
    length, header = place(message, 3), place(message, 2)
    body = read("<q", length) if length else 0
    kind = place(message, 1)
    if not header or not kind or read("<B", kind) != 3:  # 3: a record batch; a schema has no body
        return body, body
    batch = header + read("<I", header)
    vector = place(batch, 2)
    vector += read("<I", vector)
    count = read("<I", vector)
    last = vector + 4 + 16 * (count - 1)
    return body, read("<q", last) + read("<q", last + 8) if count else 0
