import subprocess
import sys

import pytest

from lhtrain.registry import Registry, load_plugins


class First: ...


class Second: ...


def test_an_entry_is_imported_when_it_is_used():
    registry = Registry("thing", {"ours": "json:dumps", "other": "no_such_module:Name"})
    assert "ours" in registry and registry.names() == ["ours", "other"]
    assert registry["ours"]([1]) == "[1]"
    with pytest.raises(ImportError, match="no_such_module"):
        registry["other"]
    with pytest.raises(KeyError):
        registry["none"]


def test_a_name_belongs_to_one_object():
    registry = Registry("thing", {"ours": "json:dumps"})
    assert registry.add("mine")(First) is First
    registry.add("mine")(First)  # its module was imported again
    assert registry["mine"] is First
    with pytest.raises(ValueError, match=r"thing 'mine': .*First already has this name"):
        registry.add("mine")(Second)
    with pytest.raises(ValueError, match=r"thing 'ours': json:dumps already has this name"):
        registry.add("ours")(Second)


def test_plugins_come_from_the_current_folder_too(tmp_path, monkeypatch):
    (tmp_path / "some_plugin.py").write_text("loaded = True\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    load_plugins(["some_plugin"])
    assert sys.modules.pop("some_plugin").loaded
    with pytest.raises(ImportError, match="no_such_plugin"):
        load_plugins(["no_such_plugin"])


def test_registries_need_no_torch():
    code = "import sys, lhtrain.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
