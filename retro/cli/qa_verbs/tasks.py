"""`retro qa tasks [NAME]`: which tasks there are, and the page of one."""

from __future__ import annotations

import argparse

from retro.config.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("name", nargs="?", metavar="NAME|FILE.yaml", help="a task, or the file of one of your own")
    parser.add_argument("--yaml", action="store_true", help="its definition, to begin one of your own with")


def run(arguments: argparse.Namespace) -> int:
    """Print the list, a page, or a definition."""
    from retro.data.qa.task import open_task
    from retro.data.qa.task_page import task_page, task_table, task_yaml

    if arguments.name is None:
        if arguments.yaml:
            raise ConfigError("--yaml: expected the name of a task, such as `retro qa tasks custom --yaml`")
        lines = [
            *task_table(),
            "",
            "`retro qa tasks NAME` prints the page of one: source, licence, splits, deviations.",
        ]
    else:
        task = open_task(arguments.name)
        lines = [task_yaml(task).rstrip()] if arguments.yaml else list(task_page(task))
    print("\n".join(lines))
    return 0
