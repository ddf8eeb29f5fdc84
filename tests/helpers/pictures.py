"""Search in pictures."""

import numpy as np


def locate_frame(canvas, frame):
    """Where a frame lies in a picture: the corners of all its copies."""
    windows = np.lib.stride_tricks.sliding_window_view(canvas, frame.shape)[..., 0, :, :, :]
    corners = np.argwhere((windows[:, :, 0, 0] == frame[0, 0]).all(-1) & (windows[:, :, -1, -1] == frame[-1, -1]).all(-1))
    return [tuple(corner) for corner in corners if (windows[tuple(corner)] == frame).all()]
