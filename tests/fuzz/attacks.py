"""Inputs known to do harm, by description. They are tested one by one and mixed into the drawn examples."""

import struct

from helpers import png_of

SEGMENTATIONS = {
    "runs of more than 32 bits": {"size": [40, 48], "counts": [0, 2**32 + 1920]},
    "a negative run": {"size": [40, 48], "counts": [-1, 1921]},
    "an unterminated run": {"size": [40, 48], "counts": "oooooooooooo0"},
    "a truncated run": {"size": [40, 48], "counts": "PPPP"},
    "an image of 2^80 pixels": {"size": [2**40, 2**40], "counts": [2**80]},
    "an image of 2^62 pixels": {"size": [2**31, 2**31], "counts": [2**62]},
    "a size whose product overflows": {"size": [65536, 65536], "counts": [2**32]},
    "a boolean side": {"size": [True, 1920], "counts": [0, 1920]},
    "fractional runs": {"size": [40, 48], "counts": [1.5, 1918.5]},
    "no runs": {"size": [40, 48], "counts": []},
    "a polygon of gigabytes": [[0, 0, 1e8, 0, 1e8, 1e8]],
    "a polygon whose corners overflow": [[4.29e8, 0, 4.2950e8, 0, 4.29e8, 9]],
    "a long path far outside": [[0, 0, 5e6, 5e6] * 100],
    "an odd number of coordinates": [[10, 8, 30, 8, 30, 28, 10]],
    "a box instead of a polygon": [[10, 8, 30, 8]],
    "an empty polygon": [[]],
    "text": "30 8",
}
FILE_NAMES = {
    "a parent folder": "../0.png",
    "a parent folder inside the path": "a/../../x",
    "an absolute path": "/etc/passwd",
    "a backslash": "..\\0.png",
    "a null byte": "0.png\0",
    "empty": "",
    "the current folder": "./0.png",
    "300 characters": "x" * 300,
    "a line break": "a\nb",
}
NUMBERS = {
    "zero": 0,
    "a negative number": -1,
    "32 bits": 2**31,
    "63 bits": 2**63 - 1,
    "64 bits": 2**63,
    "70 bits": 2**70,
    "a large float": 1e308,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "a fraction": 1.5,
}
JSON = {
    "nested lists": b"[" * 100_000,
    "nested mappings": b'{"a":' * 5000,
    "a lone surrogate": b'"\\ud800"',
    "a number of 5,000 digits": b"9" * 5000,
    "a wrong byte order mark": b"\xff\xfe{}",
    "a truncated literal": b"nul",
}
XML = {
    "nested entities": '<!DOCTYPE a [<!ENTITY b "cc"><!ENTITY c "&b;&b;&b;&b;">]><a>&c;</a>',
    "an external DTD": '<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
    "an external entity": '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
    "a parameter entity": '<!DOCTYPE a [<!ENTITY % b SYSTEM "http://127.0.0.1/x"> %b;]><a/>',
    "nested elements": "<annotation>" + "<object>" * 100_000,
    "a wrong declared encoding": '<?xml version="1.0" encoding="utf-16"?><annotation/>',
}
LINES = {
    "a class without a name": "99 0.5 0.5 0.1 0.1",
    "text instead of numbers": "0 a b c d",
    "NaN": "0 nan nan nan nan",
    "a polygon with an odd number of coordinates": "0 0.1 0.1 0.2 0.2 0.3 0.3 0.4",
    "a number of 5,000 digits": "0 0.5 0.5 0.1 " + "9" * 5000,
    "a parent folder": "../../etc/passwd",
}


def images(canary) -> dict[str, bytes]:
    """Files of other types and sizes disguised as images; some of them create the file `canary`."""
    script = f"(%pipe%touch {canary}) (w) file closefile ({canary}) (w) file closefile showpage\n"
    eps = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 20\n%%EndComments\n{script}%%EOF\n".encode()
    return {
        "a PostScript program": f"%!PS\n{script}".encode(),
        "an EPS program": eps,
        "an EPS program in a DOS file": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(eps)) + bytes(20) + eps,
        "a PDF that starts a program": b"%PDF-1.4\n1 0 obj <</OpenAction<</S/Launch/F(touch)>>>> endobj\n%%EOF",
        "an SVG that includes a file": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "an XBM of 65,535 pixels a side": b"#define x_width 65535\n#define x_height 65535\nstatic char x_bits[] = {0};",
        "a PPM of 99,999 pixels a side": b"P6 99999 99999 255\n",
        "a PGM of 99999999999 levels": b"P5 24 20 99999999999\n",
        "a truncated PPM": b"P3 24 20 255\n1 2 3",
        "a GIF of 65,535 pixels a side": b"GIF89a\xff\xff\xff\xff\xf7\0\0,",
        "a BMP of 2^31 pixels a side": b"BM" + bytes(8) + struct.pack("<IIii", 54, 40, 2**31 - 1, -(2**31)),
        "a PNG of 60,000 pixels a side": png_of(60000, 60000),
        "a PNG of 2^31 pixels a side": png_of(2**31 - 1, 2**31 - 1),
        "a truncated PNG": png_of(20000, 6000, bytes(1000)),
        "a TIFF whose directory points to itself": b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 256, 4, 1, 2**31, 8),
        "empty": b"",
        "zeros": b"\0" * 4096,
    }
