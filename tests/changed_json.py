"""Folders of models with one file that says something else."""

import json


def change(name, **values):
    """What writes other values into the file of JSON called `name` of a folder."""

    def apply(folder):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return apply
