"""Operations that a network is made of, and the definition of their biases."""

from tests.helpers.operations.affine import ADDING
from tests.helpers.operations.aten import ATEN
from tests.helpers.operations.moving import AVERAGING, MOVING, SAMPLING
from tests.helpers.operations.nonlinear import INPUT_BY_KEYWORD, NON_LINEAR
from tests.helpers.operations.normalization import NORMALIZATION, SOFTMAX
from tests.helpers.operations.overwriting import OVERWRITTEN_RESULTS, VIEWS
from tests.helpers.operations.products import CONVOLUTIONS, HOMOGENEOUS, PRODUCTS
from tests.helpers.operations.unlisted import UNLISTED

CASES = (
    MOVING
    | AVERAGING
    | HOMOGENEOUS
    | PRODUCTS
    | CONVOLUTIONS
    | ADDING
    | SAMPLING
    | NORMALIZATION
    | SOFTMAX
    | NON_LINEAR
    | INPUT_BY_KEYWORD
    | VIEWS
    | OVERWRITTEN_RESULTS
    | UNLISTED
    | ATEN
)
