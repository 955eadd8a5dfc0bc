"""What must be true of every page without running its commands."""

import re
from urllib.parse import unquote

import pytest

from lhtrain.conf.keys import all_keys, type_of
from tests.docs.page import ROOT, Page, guides, pages
from tests.docs.shell import unquoted_patterns

PAGES = {page.name: page for page in pages()}
GUIDES = {page.name: page for page in guides()}
GROUPS = {key.partition(".")[0] for key in all_keys() if "." in key}
FOLDERS = ("conf", "data", "kernels", "lhtrain", "scripts", "tests")
KEY = re.compile(r"((?:[a-z_0-9]+\.)+[a-z_0-9]+)(?:=.*)?")


def of_each(found):
    return pytest.mark.parametrize("page", found.values(), ids=found.keys())


@of_each(PAGES)
def test_relative_links_and_anchors_lead_somewhere(page):
    for number, target in page.links():
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        there = (page.path.parent / path).resolve() if path else page.path
        assert there.exists(), f"{page.name}:{number}: {target}"
        if anchor:
            other = PAGES[str(there.relative_to(ROOT))]
            assert anchor in other.anchors, f"{page.name}:{number}: {target}; there is {other.anchors}"


@of_each(GUIDES)
def test_every_block_names_its_language(page):
    unnamed = [block.number for block in page.blocks if not block.language]
    assert not unnamed, f"{page.name}: name the language of the blocks at lines {unnamed}"


@of_each(PAGES)
def test_words_that_a_shell_would_take_for_patterns_are_quoted(page):
    for block in page.blocks:
        for number, line in block.commands() if block.language == "bash" else ():
            assert not unquoted_patterns(line), f"{page.name}:{number}: quote {line}"


@of_each(GUIDES)
def test_commands_have_no_comments(page):
    """At its prompt zsh takes a comment for arguments."""
    blocks = (block for block in page.blocks if block.language == "bash")
    commented = [line for block in blocks for line in block.text.splitlines() if re.search(r"(^|\s)#", line)]
    assert not commented, f"{page.name}: explain in the text, not behind the command: {commented}"


@of_each(GUIDES)
def test_keys_in_the_text_exist(page):
    for number, text in page.code():
        match = KEY.fullmatch(text)
        if (
            match
            and match[1].partition(".")[0] in GROUPS
            and not text.endswith((".py", ".md", ".yaml", ".json", ".jsonl"))
        ):
            assert type_of(match[1]) is not None, f"{page.name}:{number}: no key {match[1]}"


def test_a_page_is_read_as_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.docs.page.ROOT", tmp_path)
    path = tmp_path / "page.md"
    path.write_text(
        "# A title, `code`\n"
        "<!-- not run: too long -->\n\n```bash\nlhtrain \\\n  a=1  # why\n# none\nls\n```\n"
        "## A title, `code`\n[one](x.md#y) `[no](z.md)`\n```yaml\n# my/stage/a.yaml\nb: 1\n```\n"
    )
    page = Page(path)
    shell, yaml = page.blocks
    assert (shell.mark, list(shell.commands())) == (
        "not run: too long",
        [(5, "lhtrain   a=1  # why"), (8, "ls")],
    )
    assert (yaml.file, yaml.mark) == ("my/stage/a.yaml", "")
    assert page.anchors == {"a-title-code"} | {"a-title-code-1"}
    assert list(page.links()) == [(11, "x.md#y")]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("lhtrain 'a=[1]' \"b=[1]\" c=1", ""),
        ("lhtrain a=[1]", "[]"),
        ("lhtrain data.path=repos/*  # [x]", "*"),
        ("pip install -e .[hf]", "[]"),
    ],
)
def test_unquoted_patterns(line, found):
    assert unquoted_patterns(line) == found


@of_each(GUIDES)
def test_files_of_the_project_that_a_page_names_exist(page):
    drawn = [
        (block.number, text)
        for block in page.blocks
        for text in re.findall(r"[\w./-]+\.py\b", block.text if block.language == "text" else "")
    ]
    for number, text in [*page.code(), *drawn]:
        first, slash, rest = text.partition("/")
        if slash and re.fullmatch(r"[\w./-]*", rest) and first in FOLDERS and not text.startswith("docs/"):
            made_here = text in {block.file for block in page.blocks}
            assert made_here or (ROOT / text).exists(), f"{page.name}:{number}: no {text}"
