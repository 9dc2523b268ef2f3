"""Names of the parameters of residual networks, here and in torchvision.

====================  ===========================  =====================================
here                  torchvision
====================  ===========================  =====================================
``0.0.weight``        ``conv1.weight``             the stem is layer 0
``0.1.bias``          ``bn1.bias``
``4.conv2.weight``    ``layer2.1.conv2.weight``    then every residual block is a layer
``9.2.weight``        ``fc.weight``                the output layer is the last one
====================  ===========================  =====================================
"""

from collections.abc import Sequence


def to_torchvision(name: str, stages: Sequence[int]) -> str:
    """Torchvision's name of the parameter or buffer ``name`` of a network with ``stages`` residual blocks.

    No two names have the same one, so that ``{to_torchvision(name, stages): name for name in state}`` maps back.
    """
    layer, _, rest = name.partition(".")
    if layer == "0":
        return rest.replace("0.", "conv1.", 1) if rest.startswith("0.") else rest.replace("1.", "bn1.", 1)
    block = int(layer) - 1
    for stage, blocks in enumerate(stages, 1):
        if block < blocks:
            return f"layer{stage}.{block}.{rest}"
        block -= blocks
    return rest.replace("2.", "fc.", 1)
