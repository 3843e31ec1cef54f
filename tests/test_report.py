"""Reports: the figures are right, and the page works in a real browser without a network."""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from toy_envs import TOY, configure

from arcadia.cli import main
from arcadia.envs.emulator import GAMES
from arcadia.errors import UserError
from arcadia.published import RANDOM_AND_HUMAN, human_normalized, published_scores
from arcadia.report import write_report
from arcadia.report.figures import LONG_LABEL, learning_curves
from arcadia.report.runs import differences, group, mean_curve, read_run
from arcadia.run_directory import new_run
from arcadia.runtimes import train

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


def make_run(path: Path, scores: list[float], env: str = "pong", **settings: Any) -> Path:
    """Write a run of which nothing but its figures exists: a train row every 1,000 env_steps and 3 seconds."""
    with new_run(path, configure(TOY, env, path, **settings)):
        pass
    rows = []
    for number, score in enumerate(scores, 1):
        counters = {"env_steps": 1000 * number, "frames": 4000 * number, "updates": number, "seconds": 3.0 * number}
        figures = {"episodes": number, "steps_per_s": 333.0, "staleness": 1.0, "entropy": 0.5, "mean_return_100": score}
        rows.append({"kind": "train", **counters, **figures})
    rows.append({"kind": "skipped", "skipped_updates": 2} | {name: rows[-1][name] for name in counters})
    evaluation = {"kind": "evaluation", "mode": "sampled", "mean": scores[0], "env_steps": 500, "frames": 2000}
    rows.append(evaluation | {"seconds": 1.5, "updates": 1})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_run_is_read_with_its_last_score_and_what_was_skipped(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", [-20.0, -5.0, 3.0]))
    assert run.score == 3.0
    assert run.game == "pong"
    assert run.skipped_updates == 2
    assert run.column("minutes").tolist() == pytest.approx([0.05, 0.1, 0.15])
    assert len(run.evaluations) == 1
    assert np.isnan(run.column("no_such_figure")).all()


def test_the_longest_names_of_runs_leave_the_curves_their_room(tmp_path: Path) -> None:
    limits = {"total_minutes": 123.0, "normalize_advantage": True}
    settings = limits | {
        "entropy_schedule": "linear",
        "reward_scale": 0.123456,
        "lr": 0.123456,
        "gamma": 0.123456,
        "epsilon": 0.5,
        "alpha": 0.5,
    }
    runs = [read_run(make_run(tmp_path / "a", [1.0])), read_run(make_run(tmp_path / "b", [2.0], **settings))]
    groups = group(runs)
    assert max(len(each.label) for each in groups) > 2 * LONG_LABEL
    figure = learning_curves(groups, "env_steps", {})
    figure.draw_without_rendering()
    (axes,) = figure.axes
    legend = axes.get_legend().get_window_extent()
    assert axes.get_position().width > 0.85
    assert figure.bbox.x0 <= legend.x0 < legend.x1 <= figure.bbox.x1


def test_runs_that_differ_in_their_seed_only_are_one_group(tmp_path: Path) -> None:
    runs = [
        read_run(make_run(tmp_path / "a", [1.0], seed=1)),
        read_run(make_run(tmp_path / "b", [2.0], seed=2, lr=0.5)),
        read_run(make_run(tmp_path / "c", [3.0], seed=3, total_minutes=5.0, stop_score=9.0)),
    ]
    lr = runs[0].config.optimizer.lr
    assert differences(runs) == {"optimizer.lr": [lr, 0.5, lr]}
    groups = group(runs)
    assert [each.label for each in groups] == [f"toy, lr {lr}", "toy, lr 0.5"]
    assert [[run.path.name for run in each.runs] for each in groups] == [["a", "c"], ["b"]]
    assert [each.label for each in group(runs[:1])] == ["toy"]


def test_a_mean_curve_is_the_mean_over_seeds_as_far_as_all_of_them_got(tmp_path: Path) -> None:
    """Lines of slopes 1 and 3 per 1,000 steps: their mean has slope 2, every resample lies between them."""
    slow = read_run(make_run(tmp_path / "slow", [1.0 * n for n in range(1, 11)]))
    fast = read_run(make_run(tmp_path / "fast", [3.0 * n for n in range(1, 8)]))
    curve = mean_curve([slow, fast], "env_steps")
    assert (curve.x[0], curve.x[-1]) == (1000, 7000)
    np.testing.assert_allclose(curve.mean, curve.x / 1000 * 2)
    np.testing.assert_allclose(curve.low, curve.x / 1000)
    np.testing.assert_allclose(curve.high, curve.x / 1000 * 3)
    alone = mean_curve([slow], "minutes")
    assert alone.x[-1] == pytest.approx(0.5)
    np.testing.assert_array_equal(alone.low, alone.high)


def test_human_normalised_scores_and_published_ones() -> None:
    assert human_normalized("pong", -20.7) == 0
    assert human_normalized("pong", 14.6) == pytest.approx(1)
    assert human_normalized("breakout", 30.5 * 2 - 1.7) == pytest.approx(2)
    assert human_normalized(None, 3.0) is None
    assert len(RANDOM_AND_HUMAN) == 57
    assert set(RANDOM_AND_HUMAN) <= set(GAMES), "ROM names"
    assert published_scores("pong")["A2C, 40M frames (Schulman et al. 2017, arXiv:1707.06347)"] == 19.7
    assert published_scores("unknown") == {}


def test_the_interquartile_mean_over_games_and_seeds(tmp_path: Path) -> None:
    """Normalised scores 0, 0.5, 1, 9: the mean of the middle half is 0.75."""
    scores = {("pong", 1): -20.7, ("pong", 2): -20.7 + 35.3 / 2, ("breakout", 1): 30.5, ("breakout", 2): 1.7 + 9 * 28.8}
    paths = [make_run(tmp_path / f"{env}{seed}", [s], env, seed=seed) for (env, seed), s in scores.items()]
    page = write_report(paths, tmp_path / "out").read_text()
    row = re.search(r"<td>toy</td><td>2</td><td>4</td><td>([\d.]+)</td>\s*<td[^>]*>\[([-\d.]+), ([-\d.]+)\]", page)
    assert row is not None
    iqm, low, high = map(float, row.groups())
    assert iqm == 0.75
    assert 0 <= low <= 0.75 <= high <= 9


def test_games_with_one_run_each_have_no_interval_and_one_game_no_mean_of_games(tmp_path: Path) -> None:
    pong, breakout = make_run(tmp_path / "p", [-20.7]), make_run(tmp_path / "b", [30.5], "breakout")
    page = write_report([pong, breakout, pong], tmp_path / "out").read_text()
    row = re.search(r"<td>toy</td><td>2</td><td>(\d)</td><td>([\d.]+)</td>\s*<td[^>]*>(.)", page)
    assert row is not None
    assert row.groups()[:2] == ("2", "0.50"), "a run given twice is one"
    assert row[3] != "["
    assert "interquartile" not in write_report([pong], tmp_path / "out").read_text()
    sticky = make_run(tmp_path / "s", [-10.7], "ALE/Pong-v5")
    assert "interquartile" not in write_report([pong, sticky], tmp_path / "out").read_text(), "one game, two ids"
    other = make_run(tmp_path / "o", [30.5], "breakout", lr=0.5)
    assert "interquartile" not in write_report([pong, other], tmp_path / "out").read_text(), "other settings"


def test_settings_that_do_not_matter_do_not_divide_seeds(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / "a", [1.0]), make_run(tmp_path / "b", [2.0], seed=2, quiet=True, eval_episodes=1)]
    assert len(group([read_run(path) for path in paths])) == 1


def test_curves_that_do_not_overlap_have_no_mean(tmp_path: Path) -> None:
    early, late = make_run(tmp_path / "early", [1.0, 2.0, 3.0]), make_run(tmp_path / "late", [9.0] * 8)
    rows = [json.loads(line) for line in (late / "metrics.jsonl").read_text().splitlines()]
    for row in rows[:5]:
        row.pop("mean_return_100", None)
    (late / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(mean_curve([read_run(early), read_run(late)], "env_steps").x) == 0
    write_report([early, late], tmp_path / "out")


def test_names_of_any_kind_are_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [1.0, 2.0])
    description = json.loads((run / "config.json").read_text())
    description["config"]["recipe"] = "<b>$\\frac$</b>"
    (run / "config.json").write_text(json.dumps(description))
    (run / "videos").mkdir()
    (run / "videos" / "a&b <1>.mp4").write_bytes(b"x")
    (run / "videos" / "moving.gif").write_bytes(b"x")
    (run / "videos" / ".torn.tmp.mp4").write_bytes(b"x")
    page = write_report([run], tmp_path / "out").read_text()
    assert "<b>" not in page
    assert "a&amp;b &lt;1&gt;" in page
    assert '<img src="data:image/gif;base64,eA==" alt="moving">' in page
    assert "torn" not in page


@pytest.mark.parametrize(
    ("stem", "caption"),
    [
        ("training-000000012000", "in training, at 12,000 env_steps"),
        ("sampled-best-000000097736-best-of-100", "sampled, best parameters, of 97,736 env_steps, best of 100"),
        ("greedy-newest-000000000120-game-seed-7", "greedy, newest parameters, of 120 env_steps, game, seed 7"),
        (
            "sampled-newest-000000097736-env-ALE-Pong-v5-best-of-30-seed-8",
            "sampled, newest parameters, of 97,736 env_steps, env-ALE-Pong-v5, best of 30, seed 8",
        ),
        (
            "sampled-newest-000000097736-env-ALE-Pong-v5-worst-of-30",
            "sampled, newest parameters, of 97,736 env_steps, env-ALE-Pong-v5, worst of 30",
        ),
        ("my-best-game", "my-best-game"),
    ],
)
def test_captions_say_in_words_what_a_video_shows(tmp_path: Path, stem: str, caption: str) -> None:
    run = make_run(tmp_path / "run", [1.0])
    (run / "videos").mkdir()
    (run / "videos" / f"{stem}.mp4").write_bytes(b"x")
    page = write_report([run], tmp_path / "out").read_text()
    assert f'<figcaption class="faint">{caption}</figcaption>' in page


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a real run with evaluations and a video."""
    path = tmp_path_factory.mktemp("report") / "run <1>"
    train(configure(TOY, "CartPole-v1", path, runtime="serial", num_envs=3, total_steps=3000, eval_updates=40))
    assert main(["eval", str(path), "--episodes", "5"]) == 0
    assert main(["play", str(path)]) == 0
    return path


@pytest.fixture
def browser() -> Iterator[webdriver.Chrome]:
    if BROWSER is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--window-size=1100,900", "--host-resolver-rules=MAP * 0.0.0.0"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def test_the_page_works_in_a_browser_offline(trained: Path, tmp_path: Path, browser: webdriver.Chrome) -> None:
    page = write_report([trained], tmp_path)
    text = page.read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", text), "the page needs another file"
    ids = Counter(re.findall(r' id="([^"]+)"', text))
    referenced = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    assert len(referenced) > 10
    assert {ids[name] for name in referenced} == {1}, "a hidden figure may hold what another refers to"
    browser.get(page.as_uri())
    assert "CartPole-v1" in browser.title
    panels = browser.find_elements(By.CSS_SELECTOR, ".panel")
    assert [panel.is_displayed() for panel in panels] == [True, False, False]
    browser.find_element(By.XPATH, "//label[text()='minutes of training']").click()
    assert [panel.is_displayed() for panel in panels] == [False, False, True]
    cells = [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "td")]
    result = json.loads(next((trained / "evaluations").glob("*-5.json")).read_text())
    assert f"{result['mean']:.2f}" in cells
    assert any(cell.endswith("/run <1>") for cell in cells), "a name is text, not markup"
    for card in browser.find_elements(By.CSS_SELECTOR, ".card"):
        assert card.get_property("scrollWidth") <= card.get_property("clientWidth"), "a table is cut off"
    caption = browser.find_element(By.CSS_SELECTOR, "figcaption").text
    assert re.fullmatch(r"sampled, newest parameters, of 3,\d{3} env_steps, game, seed 2000000", caption)

    video = browser.find_element(By.CSS_SELECTOR, "video")
    WebDriverWait(browser, 10).until(lambda _: browser.execute_script("return arguments[0].readyState", video) >= 2)
    width, height, seconds = (video.get_property(name) for name in ("videoWidth", "videoHeight", "duration"))
    assert (width, height) == (860, 420)
    browser.execute_script("arguments[0].play()", video)
    WebDriverWait(browser, 10).until(lambda _: video.get_property("currentTime") > min(0.1, seconds / 2))
    assert browser.get_log("browser") == []


def test_evaluations_with_other_seeds_are_told_apart(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    file = next((run / "evaluations").glob("*-5.json"))
    other = json.loads(file.read_text()) | {"seed": 7}
    file.with_stem(f"{file.stem}-seed-7").write_text(json.dumps(other))
    page = write_report([run], tmp_path / "out").read_text()
    assert page.count("5 sampled, newest parameters, seed 7<") == page.count("5 sampled, newest parameters<") == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_ink_of_the_curves_follows_the_color_scheme(
    trained: Path, tmp_path: Path, browser: webdriver.Chrome, scheme: str
) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(write_report([trained], tmp_path).as_uri())

    def brightness(selector: str, name: str) -> float:
        color = browser.find_element(By.CSS_SELECTOR, selector).value_of_css_property(name)
        return float(np.mean([int(part) for part in re.findall(r"\d+", color)[:3]]))

    background = brightness(".card", "background-color")
    for selector, name in (
        ("td", "color"),
        (".panel svg text", "fill"),
        (".panel svg [style*='currentColor']", "color"),
    ):
        assert abs(brightness(selector, name) - background) > 100
    assert (background > 128) == (scheme == "light")


def bare_row(kind: str) -> str:
    return json.dumps({"kind": kind, "env_steps": 1, "frames": 1, "updates": 1, "seconds": 1.0}) + "\n"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "config.json").unlink(), "is not a run directory"),
        (lambda run: (run / "metrics.jsonl").unlink(), "has the run begun?"),
        (lambda run: (run / "metrics.jsonl").write_text(""), "has no figures yet: train it longer"),
        (lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\xff"), "has no figures yet"),
        (lambda run: (run / "metrics.jsonl").write_text(bare_row("train")), "of kind train has no number episodes"),
        (lambda run: (run / "metrics.jsonl").write_text(bare_row("skipped")), "has no number skipped_updates"),
        (lambda run: (run / "evaluations" / "x.json").write_text('{"mean": "<b>"}'), "is not a readable evaluation"),
    ],
)
def test_a_damaged_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture, damage: Any, message: str) -> None:
    run = make_run(tmp_path / "run", [1.0, 2.0])
    (run / "evaluations").mkdir()
    damage(run)
    assert main(["report", str(run)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_folder_of_a_report(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = make_run(tmp_path / "run", [1.0, 2.0])
    assert main(["report", str(run)]) == 0
    assert f"written to {run}/report/report.html" in capsys.readouterr().out
    assert {file.name for file in (run / "report").iterdir()} == {
        "report.html",
        *(f"pong-{axis}.png" for axis in ("env_steps", "frames", "minutes")),
    }
    (tmp_path / "file").touch()
    assert main(["report", str(run), "--output", str(tmp_path / "file")]) == 2
    assert "give another --output" in capsys.readouterr().err


def test_a_report_of_nothing(capsys: pytest.CaptureFixture) -> None:
    assert main(["report"]) == 2
    assert "no run given" in capsys.readouterr().err
    with pytest.raises(UserError, match="is not a run directory: there is no such folder"):
        write_report([Path("no/such/run")], Path("nowhere"))
    assert not Path("nowhere").exists()


def test_the_folder_of_a_run_is_told_apart_from_the_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("old", "new"):
        make_run(tmp_path / name, [1.0])
    os.utime(tmp_path / "old" / "config.json", (0, 0))
    for command in ("report", "eval", "play", "resume"):
        assert main([command, str(tmp_path)]) == 2
        assert f"it holds no config.json; the newest run in it is {tmp_path / 'new'}" in capsys.readouterr().err


def test_a_run_without_figures_is_left_out_of_a_report_of_several(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, [1.0, 2.0]) for name in ("a", "b")]
    (runs[1] / "metrics.jsonl").write_text("")
    with pytest.warns(UserWarning, match=f"{runs[1]} has no figures yet: it is left out"):
        page = write_report(runs, tmp_path / "report")
    assert "report" in page.read_text()
    assert str(runs[1]) not in page.read_text()
