"""Pictures for the user: overlays, contact sheets, film strips, animations, comparisons, curves and depth maps."""

from fg_lightning.visualization.depth_map import depth_map
from fg_lightning.visualization.film_strips import animation, film_strip, save_animation
from fg_lightning.visualization.image_grids import comparison, contact_sheet
from fg_lightning.visualization.outlines import draw_outlines
from fg_lightning.visualization.plots import curves, save_figure
from fg_lightning.visualization.saliency_overlay import Normalization, overlay, to_rgb

__all__ = [
    "Normalization",
    "animation",
    "comparison",
    "contact_sheet",
    "curves",
    "depth_map",
    "draw_outlines",
    "film_strip",
    "overlay",
    "save_animation",
    "save_figure",
    "to_rgb",
]
