"""What a person looks at: overlays and film strips."""

from fg_lightning.visualization.film_strip import film_strip
from fg_lightning.visualization.overlay import displayed, overlay

__all__ = ["displayed", "film_strip", "overlay"]
