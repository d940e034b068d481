"""The pack as a package: it loads once, keeps its dependencies one way, and says truthfully what it is."""

from __future__ import annotations

import ast
import asyncio
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import conditional_balance
from devtools.server import ROOT

COMFYUI = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "comfyui_version", "folder_paths", "server"}
FORBIDDEN = {
    "engine": COMFYUI | {"render", "runtime", "nodes"},
    "render": COMFYUI | {"runtime", "nodes"},
    "runtime": {"nodes"},
}
CODE = [path for part in ("engine", "render", "runtime", "nodes") for path in sorted((ROOT / part).rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    """The first word of every import, with `..nodes` read as `nodes`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ([node.module.split(".")[0]] if node.module else [name.name for name in node.names])


def schemas() -> list:
    extension = asyncio.run(conditional_balance.comfy_entrypoint())
    return [node.GET_SCHEMA() for node in asyncio.run(extension.get_node_list())]


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_dependencies_run_one_way(path: Path) -> None:
    part = path.relative_to(ROOT).parts[0]
    assert set(imports(path)) & FORBIDDEN.get(part, set()) == set()


@pytest.mark.parametrize("path", [path for path in CODE if "engine" in path.parts], ids=lambda path: path.stem)
def test_the_engine_knows_no_widget(path: Path) -> None:
    """Its errors are typed; the sentence that names an input is made where inputs are known."""
    inputs = {each.id for schema in schemas() for each in schema.inputs}
    raised = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    texts = [each.value for node in raised for each in ast.walk(node) if isinstance(each, ast.Constant)]
    assert not inputs & {name for text in texts if isinstance(text, str) for name in re.findall(r"'(\w+)'", text)}


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_pack_imports_itself_by_relative_names(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert not re.search(r"^\s*(from|import) (conditional_balance|engine|render|runtime)\b", source, re.MULTILINE)


# What ComfyUI's requirements.txt names above its line "non essential dependencies", and what comes with Python.
PROMISED = {"torch", "numpy", "scipy", "einops", "safetensors", "PIL", "aiohttp", *COMFYUI, *sys.stdlib_module_names}


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_pack_loads_with_what_comfyui_promises(path: Path) -> None:
    """Anything else, such as kornia, is imported where it is used."""
    loaded = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.Import)]
    named = [name.name.split(".")[0] for node in loaded for name in node.names]
    loaded = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)]
    named += [node.module.split(".")[0] for node in loaded if node.level == 0]
    assert set(named) <= PROMISED


SOURCES = [
    *CODE,
    ROOT / "dev.py",
    *(path for part in ("devtools", "demo", "benchmarks") for path in (ROOT / part).rglob("*.py")),
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_text_files_are_read_and_written_in_an_encoding_that_is_named(path: Path) -> None:
    """Else Windows takes its code page, in which most names of styles and subjects cannot be written."""
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and _opens_text(call):
            assert any(word.arg == "encoding" for word in call.keywords), f"{path.name}:{call.lineno}"


def _opens_text(call: ast.Call) -> bool:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr in ("read_text", "write_text")
    modes = [
        part.value
        for part in (*call.args[1:], *(word.value for word in call.keywords))
        if isinstance(part, ast.Constant)
    ]
    return getattr(call.func, "id", "") == "open" and not any("b" in str(mode) for mode in modes)


def test_the_pack_does_not_shadow_comfyui() -> None:
    import nodes

    assert hasattr(nodes, "common_ksampler")
    assert sys.modules["conditional_balance.nodes"] is not nodes


def test_the_web_directory_exists() -> None:
    assert (ROOT / conditional_balance.WEB_DIRECTORY).is_dir()


def test_node_ids_are_ours_and_unique() -> None:
    ids = [schema.node_id for schema in schemas()]
    assert len(ids) == len(set(ids))
    assert all(node_id.startswith("CB") for node_id in ids)


def test_help_pages_belong_to_nodes() -> None:
    pages = {page.stem for page in (ROOT / "js" / "docs").glob("*.md")}
    assert pages <= {schema.node_id for schema in schemas()}


@pytest.mark.skipif(shutil.which("git") is None, reason="The registry reads .comfyignore as git reads its own.")
def test_the_registry_gets_help_pages_and_code_but_no_development_files() -> None:
    shipped = ["__init__.py", "nodes/gate.py", "js/docs/CBSubject.md", "js/docs/figures/CBSubject.webp"]
    shipped += ["js/docs/CBSubject/zh.md"]
    shipped += ["example_workflows/1 Style from a picture (SDXL).json", "subgraphs/Keep My Subject, all in one.json"]
    left_out = [
        "docs/heat_map.png",
        "docs/nodes/zh/CBSubject.md",
        "dev.py",
        "devtools/face.py",
        "demo/models.py",
        "demo/weights/unet.safetensors",
    ]
    left_out += ["sensitivity_profiles/demo.style.safetensors", "sensitivity_profiles/build_published.py"]
    command = ["git", "-c", f"core.excludesFile={ROOT / '.comfyignore'}", "check-ignore", "--no-index"]
    done = subprocess.run([*command, *shipped, *left_out], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == left_out, done.stderr


def test_comfyui_reads_our_project_file() -> None:
    from comfy_config.config_parser import extract_node_configuration

    config = extract_node_configuration(str(ROOT))
    assert config.project.name == "conditional-balance"
    assert config.project.requires_python
    assert config.tool_comfy.display_name == "Conditional Balance"
    assert not config.tool_comfy.web  # WEB_DIRECTORY says it; both would load every script twice


def test_the_changelog_knows_this_version() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
