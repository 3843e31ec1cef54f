"""Train every published recipe on every game its source lists, for 20,000 env_steps each; write a line of CSV per pair.

python benchmarks/recipe_games.py [RECIPE ...] > docs/systems/games.csv
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from arcadia.recipes import RECIPES

STEPS = 20_000


def train(recipe: str, env: str, run: Path) -> dict[str, object]:
    """Run `arcadia train` and return what came of it."""
    command = [sys.executable, "-m", "arcadia", "train", env, "--recipe", recipe, "--total-steps", str(STEPS)]
    result = subprocess.run([*command, "--run-dir", str(run)], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        print(result.stderr, file=sys.stderr)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "train"][-1]
    return {
        "exit_code": result.returncode,
        "env_steps": last["env_steps"],
        "frames": last["frames"],
        "episodes": last["episodes"],
        "skipped_updates": sum(row["skipped_updates"] for row in rows if row["kind"] == "skipped"),
    }


def main(names: list[str]) -> None:
    """Print the table, a line as soon as it is known."""
    print("recipe,env,exit_code,env_steps,frames,episodes,skipped_updates", flush=True)
    for recipe in names or [name for name, entry in RECIPES.items() if entry.games]:
        for env in RECIPES[recipe].games:
            with tempfile.TemporaryDirectory() as folder:
                figures = train(recipe, env, Path(folder) / "run")
            print(recipe, env, *figures.values(), sep=",", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
