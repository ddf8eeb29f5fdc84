"""Encodes pictures as PNG files. It is fast, because training waits while the pictures of a snapshot are encoded."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from fg_lightning.visualization.saliency_overlay import RGB

SIGNATURE = b"\x89PNG\r\n\x1a\n"

DEPTH, TRUECOLOUR = 8, 2
REPEATING = 0.5
"""A picture counts as repetitive if at most this share of its bytes differs from the byte above. Enlarged pictures and text do."""

UP = 2
"""The PNG filter that replaces a row by its differences from the row above."""


def encode_png(picture: RGB) -> bytes:
    """A picture [H, W, 3] as the content of a PNG file (ISO/IEC 15948), without loss.

    Each row is replaced by its differences from the row above, and then compressed lightly. Pillow tries five filters for each row
    and compresses more strongly. For a sheet of overlays, that takes four to eight times as long and saves a sixth of the bytes. A
    photograph has few repetitions, so only runs of equal bytes are compressed, in two thirds of the time.

    Args:
        picture: [H, W, 3] in 0..255.
    """
    height, width, channels = picture.shape
    pixels = picture.reshape(height, width * channels)
    rows = np.empty((height, 1 + width * channels), np.uint8)
    rows[:, 0] = UP
    rows[:1, 1:] = pixels[:1]
    np.subtract(pixels[1:], pixels[:-1], out=rows[1:, 1:])  # modulo 256, as the filter is defined
    repeats = np.count_nonzero(rows[:, 1:]) <= REPEATING * pixels.size
    compress = zlib.compressobj(1, strategy=zlib.Z_DEFAULT_STRATEGY if repeats else zlib.Z_RLE)
    content = compress.compress(rows.data) + compress.flush()
    header = struct.pack(">IIBBBBB", width, height, DEPTH, TRUECOLOUR, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": content, b"IEND": b""}
    return SIGNATURE + b"".join(_chunk(kind, part) for kind, part in chunks.items())


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
