from pathlib import Path


def test_the_readme_begins_with_the_two_commands():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert readme.index("make train") < readme.index("make test") < 1500
