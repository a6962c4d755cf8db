"""Checkpoints: artifact kind "checkpoint", one folder per checkpoint, complete or not there.

`checkpoints/step_000100/` holds config.json, state.json (position, callbacks), rng.safetensors (generator states),
manifest.json, whose `config` is the run's identity and whose checksums cover every file, and two sets of tensors,
`model` and `optimizer`: one file each, or one per process with an index where no process holds whole tensors
(retro.model.tensor_files). Everything is written into a hidden sibling, the manifest last, and the folder is renamed
into place; deleting begins with a rename too. So a folder of that name without a manifest is unfinished (a broken copy,
say) and ignored. Nothing is ever unpickled.
"""
