"""Rules of the code that no linter knows: sizes, places, names, and what start-up may import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.checkout

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGES = ("bench", "ct", "hv", "reports")
SOURCES = sorted(
    path
    for name in (*PACKAGES, "tests")
    for ext in ("*.py", "*.c", "*.h", "*.S", "*.j2", "*.css", "*.html")
    for path in (CHECKOUT / name).rglob(ext)
)
MODULES = [path for path in SOURCES if path.suffix == ".py"]


def name_of(path: Path) -> str:
    """As the checkout names it."""
    return str(path.relative_to(CHECKOUT))


def test_long_files_justify_themselves() -> None:
    """A file over 400 lines says at its head why it is that long ("lines" stands there)."""
    long = []
    for path in SOURCES:
        text = path.read_text()
        head = re.match(r"""\s*(\"{3}.*?\"{3}|/\*.*?\*/)""", text, re.DOTALL)
        if text.count("\n") > 400 and not (head and "lines" in head[1]):
            long.append(f"{name_of(path)}: {text.count(chr(10))}")
    assert not long, "over 400 lines without a reason"


def test_package_inits_are_docstrings() -> None:
    """Every __init__.py is a docstring and nothing else, so importing a package costs nothing."""
    for path in MODULES:
        if path.name == "__init__.py":
            body = ast.parse(path.read_text()).body
            assert len(body) == 1 and ast.get_docstring(ast.Module(body, [])), name_of(path)


def test_names_say_something() -> None:
    """No module called utils, helpers, common or manager."""
    vague = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
    assert not [name_of(path) for path in SOURCES if path.stem in vague]


def test_imports_are_absolute() -> None:
    """No relative import."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level), name_of(path)


def test_no_path_of_a_machine() -> None:
    """No file names a folder of the machine it was written on."""
    foreign = re.compile(rf"(?<![\w.])/(?:home|Users)/\w|{re.escape(str(CHECKOUT))}\b")
    texts = [*SOURCES, *CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/*.md"), CHECKOUT / "hvct"]
    for path in texts:
        assert not (found := foreign.findall(path.read_text())), f"{name_of(path)}: {found}"


def test_every_module_has_a_layer() -> None:
    """Each module of bench stands in the list of layers, so that none escapes the check."""
    settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    layers = " ".join(settings["tool"]["importlinter"]["contracts"][0]["layers"])
    listed = set(re.findall(r"[\w.]+", layers))
    found = {
        f"bench.{path.stem}"
        for path in (CHECKOUT / "bench").iterdir()
        if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").exists()
    }
    assert found <= listed, f"without a layer: {sorted(found - listed)}"


def test_shipped_packages_are_listed() -> None:
    """pyproject.toml ships exactly the packages that exist: explicit, and none forgotten."""
    settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    found = {
        ".".join(path.parent.relative_to(CHECKOUT).parts)
        for name in PACKAGES
        for path in (CHECKOUT / name).rglob("__init__.py")
    }
    assert set(settings["tool"]["setuptools"]["packages"]) == found


def test_every_dependency_says_what_for() -> None:
    """Each dependency has a lower bound and a reason on its line."""
    text = (CHECKOUT / "pyproject.toml").read_text()
    block = text[text.index("\ndependencies = [") : text.index("\n[project.scripts]")]
    lines = [line for line in block.splitlines() if line.startswith("    ")]
    assert len(lines) > 10
    assert all(re.fullmatch(r'    "[\w-]+>=[\d.]+", +# \S.*', line) for line in lines)


@pytest.mark.parametrize("heavy", ["pandas", "pyroute2", "libvirt", "weasyprint", "matplotlib"])
def test_help_imports_nothing_heavy(heavy: str) -> None:
    """`hvct --help` must answer at once, so none of the libraries that take long is imported."""
    program = (
        "import sys\nfrom bench.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"assert {heavy!r} not in sys.modules, 'imported'"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def test_measuring_holds_no_statistics() -> None:
    """A quick run holds neither numpy, scipy nor pydantic: 37 MiB, needed before or after."""
    program = (
        "import sys\nimport bench.commands.compare, bench.registry, ct.backend, hv.backend\n"
        "heavy = {'numpy', 'scipy', 'pandas', 'matplotlib', 'pydantic'}\n"
        "held = heavy & set(sys.modules)\n"
        "assert not held, held"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_schema_of_reports_is_published() -> None:
    """docs/report-schema.json is what `hvct report --schema` prints: others rely on it."""
    from reports import schema

    published = (CHECKOUT / "docs" / "report-schema.json").read_text()
    renew = "python -m bench.cli report --schema >docs/report-schema.json"
    assert published == schema.text(), f"the report's model has changed; renew it: {renew}"


def test_the_schema_of_cost_models_is_published() -> None:
    """docs/cost-model-schema.json is what `hvct costs --schema` prints: planners rely on it."""
    from reports import schema

    published = (CHECKOUT / "docs" / "cost-model-schema.json").read_text()
    renew = "python -m bench.cli costs --schema >docs/cost-model-schema.json"
    assert published == schema.text(schema.cost_schema()), f"the model has changed; renew: {renew}"


def cleans_everything(node: ast.AST) -> bool:
    """Whether it is a call of `hvct clean`, or of what that does, without the tag of a run."""
    if not isinstance(node, ast.Call):
        return False
    words = tuple(ast.unparse(word) for word in node.args)
    return (ast.unparse(node.func), words) in {("faults.hvct", ("'clean'",)), ("cleanup.clean", ())}


def test_who_cleans_up_after_everybody_is_apart() -> None:
    """A test that runs `hvct clean` without a tag undoes what others beside it have just killed."""
    seen = []
    for path in sorted((CHECKOUT / "tests").glob("test_*.py")):
        tree = ast.parse(path.read_text())
        marks = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Assign)]
        whole = any("pytestmark" in mark and "pytest.mark.undoes" in mark for mark in marks)
        for test in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
            if any(map(cleans_everything, ast.walk(test))):
                own = "pytest.mark.undoes" in map(ast.unparse, test.decorator_list)
                seen.append(test.name)
                assert whole or own, f"{name_of(path)}: {test.name}"
    assert "test_clean_where_the_daemon_hangs" in seen, "this does not see what it looks for"
