"""What a person looks at: overlays, contact sheets, film strips and depth maps."""

from fg_lightning.visualization.depth import depth_map
from fg_lightning.visualization.film_strip import film_strip
from fg_lightning.visualization.overlay import Normalization, displayed, overlay
from fg_lightning.visualization.sheet import contact_sheet

__all__ = ["Normalization", "contact_sheet", "depth_map", "displayed", "film_strip", "overlay"]
