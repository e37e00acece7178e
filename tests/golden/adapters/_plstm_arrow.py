"""Known answers of pLSTM: the arrow-pointing generator."""

import numpy as np

from paperlab.data.synthetic.arrow_pointing import Canvas, draw, place


def arrow_pointing(options: dict, inputs: dict, params: dict) -> dict:
    """Labels and places of `count` examples, images of the first `image_count`."""
    ranges = {name: tuple(options[name]) for name in ("arrow_length", "arrow_width", "radius")}
    plain = {name: options[name] for name in ("padding", "distance_factor", "intersection_factor")}
    canvas = Canvas(options["size"], **ranges, **plain)
    labels, places = zip(*(place(options["seed"], i, canvas) for i in range(options["count"])), strict=True)
    images = [draw(one, canvas.size) for one in places[: options["image_count"]]]
    return {"labels": np.array(labels, np.int32), "positions": np.stack(places), "images": np.stack(images)}


KINDS = {"arrow_pointing": arrow_pointing}
