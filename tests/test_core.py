"""The package works with its core dependencies alone: importing, pruning, training, one table."""

import os
import subprocess
import sys
import tomllib

from packaging.requirements import Requirement

# What a requirement is imported as, where that is not its name
MODULES = {
    "backpack-for-pytorch": "backpack",
    "beautifulsoup4": "bs4",
    "jupyter": "IPython",
    "myst-nb": "myst_nb",
}
SNIPPET = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Blocked())

import safetensors.torch
import torch

import lapnb

images = torch.randint(256, (64, 1, 28, 28), dtype=torch.uint8)
labels = torch.arange(64) % 10
data = lapnb.Data.from_tensors(images, labels, images, labels)
model = lapnb.build_model("fcn", width=0.1, seed=0)
lapnb.train(model, data, steps=2, lr=1e-3)
masks = lapnb.prune_masks(model, "lap", 0.05, example=data.normalise(images[:1]))
lapnb.apply_masks(model, masks)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
lapnb.keep_masks(model, masks, optimizer)
lapnb.train(model, data, steps=2, lr=1e-3, masks=masks)
lapnb.evaluate(model, data)
safetensors.torch.save_file(model.state_dict(), "pruned.safetensors")
loaded = safetensors.torch.load_file("pruned.safetensors")
assert sum(int((w != 0).sum()) for n, w in loaded.items() if n.endswith("weight")) <= sum(
    int(mask.sum()) for mask in masks
)
lapnb.compare(lapnb.recorded("fcn_mnist", "paper"))
"""


def test_import_pruning_and_training_need_the_core_alone(checkout, tmp_path):
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    core = {Requirement(line).name for line in project["dependencies"]}
    extras = {
        Requirement(line).name
        for lines in project["optional-dependencies"].values()
        for line in lines
    }
    blocked = {MODULES.get(name, name.replace("-", "_")) for name in extras - core - {"lapnb"}}
    assert {"matplotlib", "scipy", "seaborn", "papermill", "IPython"} <= blocked
    code = SNIPPET.replace("{blocked}", repr(blocked))
    environment = os.environ | {"LAPNB_ROOT": str(checkout)}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
