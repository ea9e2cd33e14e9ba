"""What an encoded image is, by its header or in full, and what makes it unfit for training.

Unfit is what the loaders on the way to a model take for something else, without a word: veRL, vLLM and
transformers all end in Pillow's `convert("RGB")`, which clips 16-bit grey, turns CMYK by formula, drops
transparency, and takes the first frame of an animation.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import NamedTuple

from PIL import Image, ImageOps, PngImagePlugin

from tpru_verl.terminal import line_of

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # Pillow's other readers may start programs or are rare
MAX_PIXELS = 64 * 2**20  # of one file, by its header: a larger one is a decompression bomb or a mistake
LEAST_SIDE = 4  # pixels; Qwen's processor enlarges any image to 28 x 28, but there is nothing to see
MAX_RATIO = 200  # of the sides: smart_resize of Qwen2-VL's processor raises beyond
PLAIN_MODES = ("RGB", "L", "1", "P", "RGBA", "LA")
_ORIENTATION = 0x0112  # EXIF
_ZLIB = 1032  # the most that zlib makes of one byte, https://zlib.net/zlib_tech.html

Encoded = bytes | memoryview


class Header(NamedTuple):
    """What can be told without decoding; width and height as stored, before `orientation` (EXIF, 1 to 8)."""

    format: str
    width: int
    height: int
    mode: str
    orientation: int
    frames: int
    transparent: bool
    whole: bool  # by its end: what a broken download lacks

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height as a person sees the picture."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_header(data: Encoded) -> Header:
    """Read what comes before the pixels. Raises ValueError for what is no image of FORMATS."""
    return scan(data) or _ask_pillow(bytes(data))


def scan(data: Encoded) -> Header | None:
    """The header of a plain JPEG or PNG, read without Pillow, which takes ten times as long.

    Plain: 8 bits a channel, one picture, no transparent colour, whole at its end, at most MAX_PIXELS, no text
    or profile that may grow when it is unpacked. None for anything else: Pillow has to be asked.
    """
    found = _scan_jpeg(data) or _scan_png(data)
    return found if found and 0 < found.width * found.height <= MAX_PIXELS else None


def _scan_jpeg(data: Encoded) -> Header | None:
    if data[:3] != b"\xff\xd8\xff" or not _ends_as_it_should(data, "JPEG"):
        return None
    at, orientation = 2, 1
    try:
        while data[at] == 0xFF:
            marker = data[at + 1]
            if 0xC0 <= marker <= 0xC2:  # baseline, extended or progressive; the rarer ones are for Pillow
                height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
                mode = {1: "L", 3: "RGB", 4: "CMYK"}.get(data[at + 9])
                if not mode or data[at + 4] != 8:
                    return None
                return Header("JPEG", width, height, mode, orientation, 1, False, True)
            if not (0xE0 <= marker <= 0xEF or marker in (0xC4, 0xDB, 0xDD, 0xFE)):  # APPn, tables, comment
                return None
            end = at + 2 + (data[at + 2] << 8 | data[at + 3])
            if bytes(data[at + 4 : at + 8]) == b"Exif" and orientation == 1:
                orientation = _orientation(bytes(data[at + 4 : end]))
            at = end
    except IndexError:
        pass
    return None


def _scan_png(data: Encoded) -> Header | None:
    if data[:16] != b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" or len(data) < 57 or not _ends_as_it_should(data, "PNG"):
        return None
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    mode = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}.get(colour)
    at, kind, orientation, texts = 8, b"", 1, 0
    while kind != b"IDAT":
        length, kind = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8])
        if len(kind) < 4 or kind in (b"tRNS", b"acTL"):  # a transparent colour, an animation
            return None
        texts += length * (1 if kind == b"tEXt" else _ZLIB if kind in (b"zTXt", b"iTXt", b"iCCP") else 0)
        if kind == b"eXIf":
            orientation = _orientation(b"Exif\0\0" + bytes(data[at + 8 : at + 8 + length]))
        at += length + 12
    sound = zlib.crc32(data[12:29]) == int.from_bytes(data[29:33], "big")
    if not mode or depth != 8 or not sound or texts > PngImagePlugin.MAX_TEXT_CHUNK:
        return None
    return Header("PNG", width, height, mode, orientation, 1, False, True)


def _orientation(exif: bytes) -> int:
    """1 to 8, by a segment that begins with "Exif"; 1 where it does not say."""
    found = Image.Exif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF, a warning without a place
            found.load(exif)
            orientation = found.get(_ORIENTATION, 1)
    except Exception:  # Pillow's parser raises many kinds, and a picture is fit without EXIF
        return 1
    return orientation if orientation in range(1, 9) else 1


def _ask_pillow(data: bytes) -> Header:
    try:
        with _opened(data) as image, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frames = getattr(image, "n_frames", 1) if image.format in ("GIF", "WEBP", "PNG") else 1
            # Only where there is EXIF: parsing costs more than all the rest.
            orientation = image.getexif().get(_ORIENTATION, 1) if "exif" in image.info else 1
            return Header(
                str(image.format),
                image.width,
                image.height,
                image.mode,
                orientation if orientation in range(1, 9) else 1,
                frames,
                "transparency" in image.info,
                _ends_as_it_should(data, str(image.format)),
            )
    except ValueError:
        raise
    except Exception as error:  # a file that is cut between its header and its frames
        raise ValueError(_not_decoded(error, data)) from error


def _opened(data: bytes) -> Image.Image:
    if not data:
        raise ValueError("found 0 bytes, expected an image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is stricter
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(f"found over {MAX_PIXELS} pixels, expected at most that") from None
    except Exception as error:  # Pillow's readers raise many kinds
        what = "a web page" if data[:256].lstrip().lower().startswith((b"<!doctype", b"<html")) else "bytes"
        expected = f"expected {', '.join(FORMATS)}"
        raise ValueError(
            f"found {what} that no image reader takes ({len(data)} bytes), {expected}"
        ) from error


def problem_of(data: Encoded, *, deep: bool = False) -> str | None:
    """Why an image is unfit, as "found ..., expected ...", or None; `deep` decodes it in full."""
    try:
        header = read_header(data)
    except ValueError as error:
        return str(error)
    return problem_of_header(header, data, deep=deep)


def problem_of_header(header: Header, data: Encoded, *, deep: bool = False) -> str | None:
    """As `problem_of`, for a header that was read before."""
    if header.frames > 1:
        return f"found an animation of {header.frames} frames, expected one picture"
    if found := _sides_problem(header.width, header.height) or _mode_problem(header.mode):
        return found
    if header.transparent and header.mode not in ("RGBA", "LA"):  # dropped, so that hidden colours show
        return f"found a {_MODES.get(header.mode, header.mode)} with transparency, expected an opaque picture"
    return decoding_problem(bytes(data)) if deep or not header.whole else None


def _sides_problem(width: int, height: int) -> str | None:
    size = f"found {width} x {height} pixels"
    if width * height > MAX_PIXELS:
        return f"{size}, expected at most {MAX_PIXELS} in all"
    if min(width, height) < LEAST_SIDE:
        return f"{size}, expected sides of at least {LEAST_SIDE}"
    if max(width, height) > MAX_RATIO * min(width, height):
        return f"{size}, expected sides within 1 : {MAX_RATIO}"
    return None


def _mode_problem(mode: str) -> str | None:
    if mode in PLAIN_MODES:
        return None
    return f"found {_MODES.get(mode, 'mode')} ({mode}), expected 8 bits of grey or RGB"


_MODES = {"CMYK": "print colours", "I;16": "16-bit grey", "I": "32-bit grey", "F": "float", "P": "palette"}


def note_of(header: Header) -> str | None:
    """What a user should know about an image that is fit; None for nothing."""
    if header.orientation != 1:
        expected = "expected a picture that is stored upright, because many programs do not turn it"
        return f"found EXIF orientation {header.orientation}, {expected}"
    if header.mode in ("RGBA", "LA"):
        expected = "expected a picture without one, because some programs put it on white and others drop it"
        return f"found an alpha channel ({header.mode}), {expected}"
    return None


def _ends_as_it_should(data: Encoded, format_: str) -> bool:
    """Whether the container's end is where it belongs: cheap, and what a broken download lacks."""
    if format_ == "JPEG":
        return bytes(data[-64:]).rstrip(b"\0\r\n ").endswith(b"\xff\xd9")
    if format_ == "PNG":
        return bytes(data[-12:-4]) == b"\0\0\0\0IEND"
    if format_ == "WEBP":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    if format_ == "GIF":
        return bytes(data[-64:]).rstrip(b"\0").endswith(b"\0;")
    return format_ != "BMP" or len(data) >= int.from_bytes(data[2:6], "little")


def decoding_problem(data: bytes) -> str | None:
    """Why an image cannot be decoded in full, or None."""
    try:
        with _opened(data) as image:
            image.load()
    except Exception as error:
        return _not_decoded(error, data)
    return None


def _not_decoded(error: Exception, data: Encoded) -> str:
    reason = line_of(error)[:200]
    return f"found an image that can't be decoded ({reason}; {len(data)} bytes), expected a whole one"


def on_white(image: Image.Image) -> Image.Image:
    """The image; one with an alpha channel (RGBA) as RGB on white, as `to_rgb` of qwen_vl_utils has it.

    Pillow's `convert` shows the colours that are hidden where the picture is transparent.
    """
    if image.mode != "RGBA":
        return image
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white


def upright(data: bytes) -> Image.Image:
    """Decode to RGB as a trainer shows it: EXIF orientation applied, on white. Raises ValueError."""
    try:
        with _opened(data) as image, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF
            return on_white(ImageOps.exif_transpose(image)).convert("RGB")
    except Exception as error:
        raise ValueError(_not_decoded(error, data)) from error


def thumbnail(data: bytes, side: int) -> Image.Image:
    """An upright RGB picture of at most `side` pixels; a JPEG is decoded at that scale, which is quicker.

    Raises ValueError.
    """
    try:
        with _opened(data) as image, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF
            image.draft("RGB", (side, side))
            small = on_white(ImageOps.exif_transpose(image)).convert("RGB")
        small.thumbnail((side, side))
    except Exception as error:
        raise ValueError(_not_decoded(error, data)) from error
    return small


def encoding_of(image: Image.Image, data: bytes) -> str:
    """Format, mode, names of header fields, JPEG tables, PNG's compression level, WebP's kind."""
    tables = getattr(image, "quantization", None)
    at = data.find(b"IDAT") + 4
    # RFC 1950: the second byte of a zlib stream tells the level. WebP: "VP8 " is lossy, "VP8L" lossless.
    mark = {"PNG": data[at : at + 2], "WEBP": data[12:16]}.get(str(image.format), b"")
    return f"{image.format} {image.mode} {sorted(map(str, image.info))} {tables} {mark.hex()}"
