"""The command line. It only assembles: every command is a few lines around one function."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rarl.cli_data import data_commands, open_display, prepare
from rarl.cli_sharing import export, federate, merge, push
from rarl.config import Config, is_comparison, load_config
from rarl.errors import UserError, storage_fault
from rarl.system.imports import collect_seldom
from rarl.system.processes import interruptible

REPOSITORY = Path(__file__).resolve().parent.parent

app = typer.Typer(
    help="Reasoning-aware reinforcement learning for medical vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tiny = typer.Typer(
    help="The tiny world: a real model and phantom radiographs, small enough for a laptop."
)
app.add_typer(tiny, name="tiny", no_args_is_help=True)
judge_commands = typer.Typer(help="The judge that scores correctness and explanation.")
app.add_typer(judge_commands, name="judge", no_args_is_help=True)
app.add_typer(data_commands, name="data", no_args_is_help=True)
for command in (prepare, merge, federate, export, push):
    app.command()(command)

Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, such as rollout.group_size=4")
]


def main() -> None:
    """Runs the command line: a UserError becomes one line and exit code 2."""
    run_and_explain(app)


def run_and_explain(function: Any, *arguments: Any) -> None:
    collect_seldom()
    try:
        function(*arguments)
    except (UserError, OSError) as error:
        fault = storage_fault(error, "the disk") if isinstance(error, OSError) else error
        if fault is None:
            raise
        print(f"error: {fault}", file=sys.stderr)
        sys.exit(2)


@app.command()
def train(config: Path, overrides: Overrides = None) -> None:
    """Measures the base model, trains, measures again."""
    train_config(load_config(config, overrides))


@app.command()
def sft(config: Path, overrides: Overrides = None) -> None:
    """Supervised fine-tuning: as `train`, with method=sft."""
    train_config(load_config(config, [*(overrides or []), "method=sft"]))


@app.command()
def probe(
    config: Path,
    overrides: Overrides = None,
    samples: Annotated[
        int, typer.Option("--samples", "-n", min=2, help="Replies to each question.")
    ] = 16,
    questions: Annotated[int, typer.Option(min=8, help="Of each data set, at most.")] = 64,
) -> None:
    """Says before any training whether there is something to learn, and what to do first."""
    from rarl.commands.probe import probe as probe_model

    display, loaded = open_display(), load_config(config, overrides)
    with interruptible():
        found, folder = probe_model(loaded, samples, questions, display)
    display.probed(found)
    display.note(f"figures, replies and the difficulty of each question in {folder}")


@app.command()
def tune(
    config: Path,
    overrides: Overrides = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="key=value,value, several times for all combinations; else learning rates around "
            "the configured one.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Of each short run.")] = 30,
) -> None:
    """Makes short runs on the same engines, and says which value it would take."""
    from rarl.commands.tune import tune as tune_model

    display = open_display()
    with interruptible():
        display.tuned(tune_model(config, overrides or [], sets or [], steps, display))


@app.command(name="eval")
def evaluate(
    target: Annotated[str, typer.Argument(metavar="RUN|CONFIG|MODEL[+ADAPTER]")],
    rest: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DATASET]... [key=value]...", help="Parquet; else the run's own."),
    ] = None,
    prompt: Annotated[str, typer.Option(help="Families, such as none,reason,structured.")] = "",
    control: Annotated[
        str, typer.Option(help="Of blank,shuffled,text: without what is to be seen.")
    ] = "",
    look: Annotated[
        bool, typer.Option("--look", help="A second look at what the model names; controls.")
    ] = False,
    samples: Annotated[
        int, typer.Option(min=1, help="Replies per question, for self-consistency.")
    ] = 1,
    options: Annotated[
        bool, typer.Option("--options", help="Likelihood of the options, without replies.")
    ] = False,
    by: Annotated[
        str, typer.Option(help="Columns such as sex,site,question_type: compares their groups.")
    ] = "",
    judge: Annotated[
        str, typer.Option(help="rules, or the URL of a judge; see docs/judge.md.")
    ] = "",
    scoring: Annotated[
        str, typer.Option(help="medevalkit: what that harness would count, too.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Where a MODEL's results go.")] = None,
) -> None:
    """Measures a run's adapter beside its base, a configuration's base model, or any model."""
    from rarl.commands.evaluate import evaluate_only, ways_to_measure
    from rarl.commands.targets import read_target

    display = open_display()
    ways = ways_to_measure(prompt, control, samples, options, look)
    columns = [f"evaluation.by={json.dumps([one.strip() for one in by.split(',')])}"] if by else []
    asked = read_target(target, [*(rest or []), *columns], judge, out)
    with interruptible():
        found = evaluate_only(asked.config, asked.made_with, ways, display, asked.adapter, scoring)
        for way, summary in found.items():
            display.measured(way, summary)
    display.note(f"replies and summaries in {Path(asked.config.run_dir) / 'evaluation'}")


@app.command()
def compare(
    comparison: Path,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="out=FOLDER, seeds=0,1 and reference=NAME are the comparison's; every other "
            "key=value is a recipe's, such as train.steps=50, and goes to every training."
        ),
    ] = None,
) -> None:
    """Trains what is missing, measures every model on every data set, and makes one table."""
    from rarl.commands.compare import compare as compare_models
    from rarl.evaluation.report import write_report

    display = open_display()
    with interruptible():
        out = compare_models(comparison, overrides or [], display.note)
        report_path = write_report(out)
    display.note(f"tables {out / 'results.md'}, .csv and .tex; report {report_path}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run directory, or a folder of them.")],
) -> None:
    """Writes report.html: tables, curves, examples, data and configuration in one file."""
    from rarl.evaluation.report import write_report

    open_display().note(f"report {write_report(folder)}")


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Of data, sampling and adapter.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The run directory.")] = None,
) -> None:
    """Trains the tiny model on phantom radiographs: the whole path in a few minutes on a CPU."""
    overrides = [f"seed={seed}", f"run_dir={out or f'runs/demo-{seed}'}"]
    train_config(load_config(REPOSITORY / "configs" / "demo.yaml", overrides))


def train_config(config: Config) -> None:
    from rarl.commands.train import train_and_evaluate
    from rarl.evaluation.report import write_report
    from rarl.training.log import draw_curve

    display = open_display()
    with interruptible():
        summary = train_and_evaluate(config, display)
    run_dir = Path(config.run_dir)
    draw_curve(run_dir / "metrics.jsonl", run_dir / "curve.png")
    seconds = summary["seconds"]
    if summary["base"]:
        display.results(summary)
        for leak in summary.get("leaks", {}).values():
            if leak["warns"]:
                display.note(leak["told"])
        display.note(f"report {write_report(run_dir)}")
    else:
        display.note("nothing was measured, since data.eval names no data set")
    taken = f"training took {seconds['train']:.0f} s, everything {seconds['total']:.0f} s"
    if len(starts := seconds.get("starts", [])) > 1:
        taken += f" in {len(starts)} starts; the last of them "
        taken += f"{starts[-1]['train']:.0f} s and {starts[-1]['total']:.0f} s"
    display.note(taken)
    display.note(f"adapter {run_dir / 'adapter'}, summary {run_dir / 'summary.json'}")


@app.command()
def serve(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|FILE",
            help="A finished run directory; those beside it are served too. Or a file of Ray "
            "Serve's, such as serve_config.yaml.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key=value of rarl/serving/settings.py, such as limits.concurrent=16"),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="127.0.0.1, or as FILE says. Others than this machine's own need RARL_API_KEY."
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="8000, or as FILE says.")
    ] = None,
) -> None:
    """Serves a run's adapter: a page for people, and the OpenAI interface for programs. See
    docs/serving.md."""
    from rarl.commands.serve import serve_file, serve_run, serving_of

    say = open_display().note
    if not target.is_file():
        return serve_run(serving_of(target, overrides or []), host, port, say)
    if overrides:
        raise UserError(f"{overrides[0]}: key=value goes with a run; {target} has keys of its own")
    serve_file(target, host, port, say)


@app.command()
def plan(
    config: Path,
    overrides: Overrides = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="The card, such as a100-40g (else this machine's)."),
    ] = None,
    gpu_gib: Annotated[
        float | None, typer.Option(help="Its memory, where only a part of the card is meant.")
    ] = None,
) -> None:
    """Estimates memory part by part, whether it fits, the shares to set, and seconds. Needs neither
    GPU nor model. Of a comparison, all trainings and measurements, and what data are missing."""
    from rarl.planning.memory import find_card

    if is_comparison(config):
        return plan_all(config, overrides or [], gpu, gpu_gib)
    loaded = load_config(config, overrides)
    find_card(gpu, gpu_gib)  # before anything that takes seconds to import
    from rarl.planning.plan import lines, make_plan, memory_table

    planned = make_plan(loaded, gpu, gpu_gib)
    display = open_display()
    display.table(memory_table(planned))
    for line in lines(planned):
        display.note(line)
    if planned.shortfalls():
        raise UserError("; ".join(planned.shortfalls()))


def plan_all(path: Path, overrides: list[str], gpu: str | None, gpu_gib: float | None) -> None:
    from rarl.commands.plan_comparison import plan_comparison
    from rarl.planning.comparison import comparison_lines, comparison_table

    planned, absent = plan_comparison(path, overrides, gpu, gpu_gib)
    display = open_display()
    display.table(comparison_table(planned))
    for line in comparison_lines(planned):
        display.note(line)
    if absent:
        display.note(f"missing, make them with `rarl prepare`: {', '.join(absent)}")
    if planned.shortfalls():
        raise UserError("; ".join(planned.shortfalls()))


@app.command()
def replay(batch: Annotated[Path, typer.Argument(metavar="RUN/failures/step_….pkl")]) -> None:
    """Shows which group of a batch that stopped a run gives no finite gradient."""
    from rarl.commands.replay import replay as replay_batch

    open_display().replayed(list(replay_batch(batch)))


@judge_commands.command()
def check(
    rest: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [key=value]...", help="The rules, where nothing is named."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for card.json and card.md: a run's, for its report.")
    ] = None,
    vl_rewardbench: Annotated[
        Path | None, typer.Option(help="A file of VL-RewardBench, to be read too.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=2, help="How often each reply is judged.")] = 2,
) -> None:
    """Measures a judge on replies of known truth: its card. Exits with 1 where it is unfit for
    rewards."""
    from rarl.commands.judge_check import judge_check
    from rarl.commands.targets import read_judge
    from rarl.judge.card import render_markdown

    display = open_display()
    config = read_judge(rest or [])
    with interruptible():
        card = judge_check(config, out, vl_rewardbench, repeats, display)
    display.note(render_markdown(card))
    if not card.fit:
        raise typer.Exit(1)


@tiny.command(name="build")
def build_tiny(
    seed: Annotated[int, typer.Option()] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")] = Path("runs/tiny-base"),
) -> None:
    """Trains the tiny base model from scratch (about four minutes on two cores)."""
    from rarl.tiny.build import STEPS, build_base

    display = open_display()
    with display.counting("building the tiny base", STEPS) as advance:
        build_base(seed, out, advance)
    display.note(f"base model of seed {seed} in {out}")
