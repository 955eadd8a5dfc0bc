"""Text files that a small model learns in a few steps. Whole runs of the tests train on them."""

from pathlib import Path


def write_texts(folder: Path, n_lines: int = 6000, n_files: int = 10) -> list[str]:
    """Make `folder` with text files that share the lines in turn; return the lines."""
    lines = [f"line {i}: the {i % 7}th of {i % 11} things, said {i % 3} times\n" for i in range(n_lines)]
    folder.mkdir(parents=True)
    for number in range(n_files):
        (folder / f"{number}.txt").write_text("".join(lines[number::n_files]))
    return lines
