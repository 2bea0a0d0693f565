"""Values that many settings may take, and facets that go together."""

from settings.declare import Facet
from utils.parameters import Range

COUNT = Range(0, 1e9)
FROM_ONE = Range(1, 1e9)
RATE = Range(0, 1e6)
SHARE = Range(0, 1)
HELD_OUT = Range(0, 1, "[)")  # a share of each class that is kept out of training
IMBALANCE = Range(1, float("inf"), "[)")
SEED = Range(0, 2**32 - 1)

# Facets that go together.
PLACE = Facet.PLACE | Facet.OF_IMAGES | Facet.ADDRESS
IDENTITY = Facet.FROM_CHECKPOINT | Facet.ADDRESS
DATA = Facet.FROM_FEATURES | Facet.OF_IMAGES | IDENTITY
PROFILE = Facet.PROFILE | DATA
SIZE = Facet.ON_DISK | Facet.OF_IMAGES | IDENTITY
CONSTANTS = Facet.CONSTANTS | Facet.OF_IMAGES | IDENTITY
BOTH_STEPS = Facet.STAGE1_STEPS | Facet.STAGE2_STEPS
