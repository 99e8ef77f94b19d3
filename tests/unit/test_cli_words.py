"""One vocabulary: older spellings still work but are not shown, groups and examples in the help, files of options."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner, Result

from planner.cli import VERBS, cli
from planner.cli.config import configured, save
from planner.cli.words import Option, Verb, again, given, option
from planner.errors import InputError, nearest
from tests.unit.test_plan import make_plan


def plan(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@click.command("try", cls=Verb, examples=["plan try --size 3"])
@click.argument("model", required=False)
@configured
@option("-o", "--output", "out", aliases=["--out"], help="Where to.")
@option("--size", type=int, default=1, help="How large.", group="Sizes")
@option("--set", "settings", multiple=True, help="Settings.")
@option("--resume", is_flag=True, help="Go on.")
@click.pass_context
def toy(ctx: click.Context, **values: object) -> None:
    """Try it."""
    shown = {**values, "given": given(ctx), "again": again(ctx, without=["--x"], adding=["--resume"])}
    click.echo(yaml.safe_dump(shown))
    if isinstance(values["out"], str) and Path(values["out"]).is_dir():
        save(ctx, Path(values["out"]))


def tried(*arguments: object) -> dict:
    done = CliRunner().invoke(toy, [str(one) for one in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict = yaml.safe_load(done.output)
    return found


def test_an_older_spelling_works_and_is_not_shown():
    assert tried("--out", "a")["out"] == tried("--output", "a")["out"] == "a"
    text = CliRunner().invoke(toy, ["--help"]).output
    assert "--output" in text and "--out " not in text and "--out," not in text


def test_help_has_groups_and_examples():
    text = CliRunner().invoke(toy, ["--help"]).output
    assert text.index("Options:") < text.index("Sizes:") < text.index("Examples:\n  plan try --size 3")
    assert text.index("Sizes:") < text.index("--size") < text.index("Examples:")


def test_a_file_of_options_counts_less_than_the_command_line(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("size: 5\noutput: b\nset: [a=1, b=2]\nmodel: mine\n")
    found = tried("--config", path)
    assert (found["size"], found["out"], list(found["settings"]), found["model"]) == (5, "b", ["a=1", "b=2"], "mine")
    assert tried("--config", path, "--size", 7)["size"] == 7
    path.write_text("set: a=1\n")
    assert list(tried("--config", path)["settings"]) == ["a=1"]
    path.write_text("")
    assert tried("--config", path)["size"] == 1


def test_what_was_given_is_saved_and_repeats_the_run(tmp_path):
    first = tried("mine", "--size", 5, "--set", "a=1", "--set", "b=2", "--resume", "--out", tmp_path)
    body = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert body == {
        "model": "mine", "size": 5, "set": ["a=1", "b=2"], "output": str(tmp_path),
    }  # fmt: skip
    second = tried("--config", tmp_path / "run.yaml", "--resume")
    assert {name: first[name] for name in ("model", "size", "settings", "out")} == {
        name: second[name] for name in ("model", "size", "settings", "out")
    }
    assert "resume" not in yaml.safe_load((tmp_path / "run.yaml").read_text()), "of one run, not of its repetition"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("sise: 5", "there is no option 'sise'. Did you mean 'size'?"),
        ("- a", "holds no options by name"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused(body, says, tmp_path):
    (tmp_path / "run.yaml").write_text(body)
    found = CliRunner().invoke(toy, ["--config", str(tmp_path / "run.yaml")])
    assert isinstance(found.exception, InputError) and says in str(found.exception)


def test_a_value_of_the_wrong_type_in_a_file_is_wrong_usage(tmp_path):
    (tmp_path / "run.yaml").write_text("size: many")
    assert CliRunner().invoke(toy, ["--config", str(tmp_path / "run.yaml")]).exit_code == 2


def test_how_to_go_on_is_a_command_line_for_a_shell():
    assert tried("a b", "--size", 2)["again"] == "try 'a b' --size 2 --resume"
    assert tried("--resume", "m")["again"] == "try --resume m"


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_s_option_has_one_spelling_that_is_shown(verb):
    """What is shown of an option is one long name, and where results go is --output everywhere."""
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    for parameter in (one for one in command.params if isinstance(one, click.Option)):
        hidden = parameter.aliases if isinstance(parameter, Option) else frozenset()
        shown = [word for word in parameter.opts if word.startswith("--") and word not in hidden]
        assert len(shown) == 1, shown
        assert shown[0] not in {
            "--answer-tokens",
            "--new-tokens",
            "--min-agreement",
            "--batch",
            "--out",
            "--max-tokens",
        }


def test_words_that_are_short_for_others_are_told_from_typing_errors():
    rows = ["h100-pcie", "h100-sxm", "h200", "a100-80gb"]
    assert nearest("h100", rows) == "Did you mean 'h100-pcie' or 'h100-sxm'? "
    assert nearest("h20", rows) == "Did you mean 'h200'? "
    assert nearest("fastb", ["fastv", "dart"]) == "Did you mean 'fastv'? " and nearest("", rows) == ""
    assert nearest("zzz", rows) == ""


def test_an_unknown_verb_is_wrong_usage_with_a_hint():
    found = plan("calibrat")
    assert found.exit_code == 2 and "There is no verb 'calibrat'. Did you mean 'calibrate'?" in found.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--image", "640x480", "--visual-tokens", 100), "leave --visual-tokens out"),
        (("--weight-bits", 7), "elements of 7 bits"),
        (("--kv-bits", "x"), "elements of x bits"),
        (("--engine", "vllm", "--eager"), "--engine, --eager without --hardware changes nothing"),
        (("--tp", 2), "--tp without --hardware changes nothing"),
        (("--sweep", "vtw:k=1..3", "--policy", "vtw:k=2"), "--policy cannot go with --sweep"),
        (("--sweep", "vtw:k=1..3", "--format", "json"), "--sweep writes csv or html"),
        (("--published",), "TARGET cannot go with --published"),
        (("--published-latency", "--format", "json"), "TARGET, --format cannot go with --published-latency"),
    ],
)
def test_reports_refuse_options_that_contradict_each_other(arguments, says):
    found = plan("report", "llava-1.5-7b", *arguments)
    assert found.exit_code == 2 and says in " ".join(found.output.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("calibrate", "--resume", "--overwrite"), "--resume goes on with what --overwrite would replace"),
        (("calibrate", "--profile-only", "--log-samples"), "--log-samples needs an evaluation"),
        (("calibrate", "--device", "cpu", "--device-map", "auto"), "both say where the model goes"),
        (("evaluate", "reference/windowed", "-o", "rows.json"), "--output is where a shard goes"),
        (("export", "reference/windowed", "--to", "vlm"), "there is no engine 'vlm'. Did you mean 'vllm'?"),
        (("calibrate", "reference/windoed"), "Did you mean 'windowed'?"),
        (("calibrate", "--metric", "exakt"), "Did you mean 'exact'?"),
        (("report", "--check", "llava-1.5-7b"), "'llava-1.5-7b' is shipped as facts without weights"),
        (("freeze", "reference/plain", "--policy", "divers:keep=0.2"), "Did you mean 'diverse'?"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = plan(*arguments)
    assert found.exit_code in (1, 2) and says in " ".join(f"{found.output} {found.exception}".split())
    assert not list(tmp_path.iterdir()), "nothing was written"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_s_help_has_examples_that_parse(verb):
    command = cli.get_command(click.Context(cli), verb)
    assert isinstance(command, Verb) and command.examples
    for line in command.examples:
        program, name, *words = shlex.split(line, comments=True)
        assert (program, name) == ("plan", verb)
        command.make_parser(click.Context(command)).parse_args(words[: words.index(">")] if ">" in words else words)


def test_pruning_a_context_that_is_not_there_is_refused():
    for policy in ("context:layers=3,rate=0.3", "fastv:k=2,ratio=0.5+context:layers=3,rate=0.3"):
        found = plan("report", "llava-1.5-7b", "--policy", policy)
        assert isinstance(found.exception, InputError) and "prunes context, and there is none" in str(found.exception)
    assert plan("report", "llava-1.5-7b", "--policy", policy, "--context-tokens", 60).exit_code == 0


def test_bundled_models_and_folders_are_taken_where_files_are(tmp_path):
    make_plan().save(tmp_path / "plan.json")
    by_folder, by_file = plan("show", tmp_path), plan("show", tmp_path / "plan.json")
    assert by_folder.exit_code == 0 and by_folder.stdout == by_file.stdout
    assert "windowed" in plan("report", "reference/windowed").stdout
    committed = Path(__file__).parents[2] / "reports" / "reference" / "windowed"
    assert plan("report", committed).stdout == plan("report", committed / "plan.json").stdout != ""
    missing = plan("report", "reference/none")
    assert isinstance(missing.exception, InputError) and "hub" not in str(missing.exception)
