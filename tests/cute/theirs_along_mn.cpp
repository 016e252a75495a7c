#include "theirs_tiles.h"

namespace theirs {

static const Tile kTiles[] = {
    tile<Major::MN, 0, 64>(),
    tile<Major::MN, 32, 64>(),
    tile<Major::MN, 64, 64>(),
    tile<Major::MN, 128, 64>(),
    tile<Major::MN, 32, 80>(),
    tile<Major::MN, 0, 96>(),
    tile<Major::MN, 32, 96>(),
    tile<Major::MN, 64, 96>(),
    tile<Major::MN, 0, 128, 64, true>(),
    tile<Major::MN, 32, 128, 64, true>(),
    tile<Major::MN, 64, 128>(),
    tile<Major::MN, 128, 128>(),
    tile<Major::MN, 128, 128, 64, true>(),
    tile<Major::MN, 64, 192, 64, true>(),
    tile<Major::MN, 128, 192>(),
    // The kernels' own: keys are k.
    tile<Major::MN, 128, 64, 80, true>(),
    tile<Major::MN, 128, 64, 96, true>(),
    tile<Major::MN, 128, 128, 80, true>(),
    tile<Major::MN, 128, 128, 96, true>(),
};

Tiles tiles_along_mn() { return {kTiles, sizeof kTiles / sizeof *kTiles}; }

}  // namespace theirs
