raise ImportError("recipes are commands, not a library: `mmalign run recipes/image/stic.yaml`; import mmalign instead")
