"""The MLflow UI and the page of `experiments compare` in a real browser, as a new user sees a sweep.

The tests need Debian's packages chromium and chromium-driver. Screenshots are kept under outputs/ui/ as PNG.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SEEN = ROOT / "outputs" / "ui"
WAIT = 60  # seconds for a page to show what is looked for
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1720,1000",
)  # fmt: skip
SWEEP = (
    "-m", "regime=bottleneck,finetune", "model.head.dropout=0.3,0.6", "data=folder", "data.image_size=48",
    "model.head.pooling=average", "batch_size=8", "model.weights=null", "epochs=4", "regime.head_epochs=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (the group dev has it)")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium or chromedriver is absent: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as found:
        yield found


class Served(NamedTuple):
    """The UI on a store with a sweep in it."""

    home: Path
    address: str  # as `experiments ui` prints it


@pytest.fixture(scope="module")
def served(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("home")
    environment = os.environ | {"EXPERIMENTS_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    sweep = [sys.executable, "-m", "experiments.train", *SWEEP, f"data.root={drawn}"]
    done = subprocess.run(sweep, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "experiments", "ui", "--port", port]
    log = home / "ui.log"
    with log.open("w") as file, subprocess.Popen(command, env=environment, stdout=file, stderr=file) as server:
        try:
            until(lambda: answers(f"http://127.0.0.1:{port}/health"), "the server answers")
            (address,) = re.findall(r"^experiments +(http://\S+)", log.read_text(), re.MULTILINE)
            yield Served(home, address)
        finally:
            server.terminate()


def answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=1).status == 200)
    except OSError:
        return False


def until(ready: Callable[[], Any], what: str) -> Any:
    """What `ready` returns once that is true; elements that a page has just replaced are looked for again."""
    from selenium.common.exceptions import WebDriverException

    deadline, found = time.monotonic() + WAIT, None
    while not found:
        assert time.monotonic() < deadline, f"not within {WAIT} s: {what}"
        time.sleep(0.2)
        try:
            found = ready()
        except WebDriverException:
            found = None
    return found


def all_of(browser: Chrome, selector: str, text: str = "") -> list[WebElement]:
    """The elements that a CSS selector finds and that contain a text, once there are some."""
    from selenium.webdriver.common.by import By

    def found() -> list[WebElement]:
        return [element for element in browser.find_elements(By.CSS_SELECTOR, selector) if text in element.text]

    seen: list[WebElement] = until(found, f"{selector} {text!r}")
    return seen


def click(browser: Chrome, selector: str, text: str = "") -> None:
    def pressed() -> bool:
        min(all_of(browser, selector, text), key=lambda element: len(element.text)).click()  # the innermost
        return True

    until(pressed, f"to press {selector} {text!r}")


def keep(browser: Chrome, name: str) -> None:
    SEEN.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(SEEN / f"{name}.png"))


@pytest.fixture
def runs(browser: Chrome, served: Served) -> Chrome:
    """The browser at the address that `experiments ui` prints, the assistant's panel closed."""
    browser.get("about:blank")
    browser.get(served.address)
    all_of(browser, ".ag-center-cols-container .ag-row")
    for panel in browser.find_elements("css selector", "[data-component-id='mlflow.assistant.chat_panel.close']"):
        panel.click()
    return browser


def requests(browser: Chrome) -> list[str]:
    """The addresses that the browser has asked for since this was last called."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


def open_winner(browser: Chrome) -> None:
    """Follows the link to the sweep's winner, whose number comes after the jobs'."""

    def pressed() -> bool:
        next(link for link in all_of(browser, ".ag-pinned-left-cols-container a") if link.text.endswith("-4")).click()
        return True

    until(pressed, "the winner's link")


def columns(browser: Chrome) -> list[str]:
    """The titles that are in sight, from the left."""
    return [cell.text for cell in sorted(all_of(browser, ".ag-header-cell"), key=lambda cell: cell.location["x"])]


def test_the_table_has_the_columns_to_compare_by(runs: Chrome) -> None:
    expected = [
        "validation.accuracy",
        "validation.accuracy_low",
        "validation.accuracy_high",
        "validation.accuracy_baseline",
        "regime",
        "model",
        "seed",
    ]
    until(lambda: [name for name in columns(runs) if name in expected] == expected, f"columns {expected}")
    cells = all_of(runs, "[role=gridcell][col-id='metrics.`validation.accuracy`']")
    accuracies = [cell.text for cell in sorted(cells, key=lambda cell: cell.location["y"])]
    assert len(accuracies) == 4 + 1 + 1, "jobs beside the sweep and its winner, not below it"
    assert accuracies[-1] == "-" and sorted(map(float, accuracies[:-1]), reverse=True) == [*map(float, accuracies[:-1])]
    regimes = {cell.text for cell in all_of(runs, "[role=gridcell][col-id='params.`regime`']")}
    assert regimes >= {"bottleneck", "finetune"}
    click(runs, "[data-component-id='mlflow.experiment.metadata_editor.expand_button']")
    keep(runs, "runs")
    assert "Which is better?" in all_of(runs, "body")[0].text


def test_all_runs_curves(runs: Chrome, served: Served) -> None:
    runs.get(f"{served.address}&compareRunsMode=CHART")
    titles = until(
        lambda: re.findall(
            r"^(validation_accuracy|validation_loss|accuracy|loss)$", all_of(runs, "body")[0].text, re.MULTILINE
        ),
        "the charts",
    )
    assert titles[:3] == ["validation_accuracy", "validation_loss", "accuracy"], "what matters first"
    until(lambda: len(all_of(runs, ".js-plotly-plot .scatterlayer .trace path.js-line")) >= 5, "a curve a run")
    keep(runs, "charts")


def test_a_runs_curves(runs: Chrome) -> None:
    open_winner(runs)
    click(runs, "[role=tab]", "Model metrics")
    all_of(runs, "input[placeholder='Search metric charts']")[0].send_keys("validation_accuracy")
    until(lambda: len(all_of(runs, ".js-plotly-plot")) == 1, "its chart alone")
    until(lambda: all_of(runs, ".js-plotly-plot .scatterlayer .trace path.js-line"), "its curve")
    assert "validation_accuracy" in all_of(runs, "body")[0].text
    keep(runs, "curves")


def test_a_runs_figures(runs: Chrome) -> None:
    open_winner(runs)
    click(runs, "[role=tab]", "Artifacts")
    click(runs, "li div", "figures")
    click(runs, "li div", "learning_curves.png")
    drawn = "return [...document.images].some(one => one.naturalWidth > 400 && one.clientWidth > 200)"
    until(lambda: runs.execute_script(drawn), "the figure")
    keep(runs, "figure")


def test_two_runs_compared(runs: Chrome) -> None:
    for regime in ("bottleneck", "finetune"):
        row = all_of(runs, ".ag-center-cols-container .ag-row", regime)[0].get_attribute("row-id")
        click(runs, f".ag-pinned-left-cols-container .ag-row[row-id='{row}'] input[type=checkbox]")
    click(runs, "button", "Compare")
    text = until(lambda: re.search(r"Comparing 2 Runs.*", all_of(runs, "body")[0].text, re.DOTALL), "the comparison")[0]
    until(lambda: all_of(runs, ".js-plotly-plot"), "a plot")
    keep(runs, "compared")
    assert {"bottleneck", "finetune"} <= set(re.split(r"\s+", text))


def test_the_ui_asks_no_other_host(runs: Chrome) -> None:
    requests(runs)
    runs.refresh()
    all_of(runs, ".ag-center-cols-container .ag-row")
    asked = [url for url in requests(runs) if not url.startswith(("data:", "blob:"))]
    assert asked and {url.split("/")[2].split(":")[0] for url in asked} == {"127.0.0.1"}


def opens_alone(browser: Chrome, page: Path) -> None:
    """Opens a page from the disk: it must ask for nothing else and complain of nothing."""
    browser.get("about:blank")
    requests(browser), browser.get_log("browser")
    browser.get(page.as_uri())
    until(lambda: browser.execute_script("return document.readyState") == "complete", page.name)
    assert [url for url in requests(browser) if not url.startswith(("data:", "blob:"))] == [page.as_uri()]
    assert browser.get_log("browser") == []
    broken = "return [...document.images].filter(one => one.complete && !one.naturalWidth).length"
    assert browser.execute_script(broken) == 0


def test_the_page_of_a_comparison(browser: Chrome, served: Served) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{served.home}/mlflow.db")
    (experiment,) = [experiment for experiment in client.search_experiments() if experiment.name == "experiments"]
    jobs = client.search_runs([experiment.experiment_id], "tags.regime != ''")
    by_regime = {run.data.tags["regime"]: run.info.run_id for run in jobs}
    environment = os.environ | {"EXPERIMENTS_HOME": str(served.home)}
    command = [sys.executable, "-m", "experiments", "compare", *by_regime.values()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (page,) = served.home.glob("compare/*/comparison.html")
    opens_alone(browser, page)
    keep(browser, "comparison")
