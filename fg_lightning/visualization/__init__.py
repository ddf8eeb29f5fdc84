"""What a person looks at: overlays, contact sheets, film strips and depth maps."""

from fg_lightning.visualization.curves import depth_map
from fg_lightning.visualization.film_strip import film_strip
from fg_lightning.visualization.grid import contact_sheet
from fg_lightning.visualization.overlay import Normalization, displayed, overlay

__all__ = ["Normalization", "contact_sheet", "depth_map", "displayed", "film_strip", "overlay"]
