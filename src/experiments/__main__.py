"""The console script `experiments VERB ...`; `experiments train` is the same as `python -m experiments.train`."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path

from experiments.system import redaction, signals
from experiments.system.paths import check_directory
from experiments.system.startup import output_failure

# Each verb's module has a main() that reads sys.argv. It is imported only when its verb is run.
VERBS = {
    "train": ("experiments.train", "run one experiment, or with -m a sweep of them"),
    "backbones": ("experiments.cli.backbones", "parameters and speed of every backbone on this machine"),
    "cache": ("experiments.cli.cache", "list, verify or shrink the cache"),
    "compare": ("experiments.cli.compare", "metrics of runs with intervals, and their paired differences"),
    "demo": ("experiments.cli.demo", "the three regimes on synthetic images, and one table"),
    "evaluate": ("experiments.cli.evaluate", "a trained model on further labelled images"),
    "export": ("experiments.cli.export", "a trained model for other programs: Keras, SavedModel, ONNX, TFLite"),
    "inspect": ("experiments.cli.inspect", "look at data, model, rates before a run; at mistakes after it"),
    "predict": ("experiments.cli.predict", "class and probability of image files, by a trained model"),
    "pretrained": ("experiments.cli.pretrained", "train the shipped backbone of the small convnet anew"),
    "register": ("experiments.cli.register", "a trained model under a name in MLflow's registry"),
    "report": ("experiments.cli.report", "one HTML page of a run: settings, data, scores, mistakes, cost"),
    "reproduce": ("experiments.cli.reproduce", "the tutorial's experiments, its claims beside what came out"),
    "summarize": ("experiments.cli.summarize", "a sweep's table, winner and figures once more"),
    "sync": ("experiments.cli.sync", "upload to MLflow what it could not receive during training"),
    "ui": ("experiments.cli.ui", "open the MLflow UI on this machine's runs"),
}

# The output of these verbs is their result, so a verb has failed if its output cannot be written.
LISTING = ("backbones", "cache", "compare", "evaluate", "inspect", "predict", "summarize")


def usage() -> str:
    lines = [f"  {verb:11} {about}" for verb, (_, about) in VERBS.items()]
    return "\n".join(
        [
            "usage: experiments VERB ...",
            "",
            *lines,
            "",
            "experiments VERB --help describes each.",
            'Completion in bash: eval "$(experiments -sc install=bash)"',
        ]
    )


def complete() -> None:
    """Serve shell completion, `-sc install|uninstall|query=SHELL`: of verbs here, of the verb `train` by Hydra.

    The shell function that Hydra installs calls this with the line typed so far in COMP_LINE.
    """
    line = os.environ.get("COMP_LINE", "")
    program, _, rest = line.lstrip().partition(" ")
    verb, space, overrides = rest.lstrip().partition(" ")
    if "query=" in " ".join(sys.argv[2:]) and (verb != "train" or not space):
        print("" if space else " ".join(VERBS))
        return
    os.environ["COMP_LINE"] = f"{program} {overrides}"
    importlib.import_module(VERBS["train"][0]).main()


def main() -> None:
    signals.end_while_loading()
    redaction.install()
    verb = sys.argv[1] if sys.argv[1:] else None
    listing = verb in LISTING or verb not in VERBS
    try:
        run_verb(sys.argv[1:])
    except KeyboardInterrupt:
        print("Stopped: Ctrl-C", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except SystemExit as ended:
        if ended.code or not listing:
            raise
    failure = output_failure()
    if listing and failure and not isinstance(failure, BrokenPipeError):  # a closed pipe (`| head`) is no failure
        sys.exit(1)


def run_verb(arguments: list[str]) -> None:
    """Run a verb with its arguments.

    Raises:
        SystemExit: the verb failed, or there is no such verb.
    """
    if arguments and arguments[0] in ("-sc", "--shell-completion"):
        complete()
        return
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        sys.exit(0 if arguments else 2)
    verb = arguments[0]
    if verb not in VERBS:
        from experiments.config.messages import nearest_hint

        allowed = f"{', '.join(VERBS)}{nearest_hint(verb, VERBS)}"
        sys.exit(f"experiments: no such verb. Received: {verb!r}. Allowed: {allowed}.\n\n{usage()}")
    sys.argv = [f"{Path(sys.argv[0]).name} {verb}", *arguments[1:]]
    if verb != "train":  # `train` may change to another directory (resume=)
        check_directory()
    module = importlib.import_module(VERBS[verb][0])
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    module.main()


if __name__ == "__main__":
    main()
