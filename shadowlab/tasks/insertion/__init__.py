"""An object into a picture: it stands next to the target, as CatVTON has it (Chong et al., ICLR 2025)."""
