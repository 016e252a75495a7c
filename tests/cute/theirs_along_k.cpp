#include "theirs_tiles.h"

namespace theirs {

static const Tile kTiles[] = {
    tile<Major::K, 0, 64>(),
    tile<Major::K, 32, 64>(),
    tile<Major::K, 64, 64>(),
    tile<Major::K, 128, 64>(),
    tile<Major::K, 128, 80>(),
    tile<Major::K, 0, 96>(),
    tile<Major::K, 32, 96>(),
    tile<Major::K, 64, 96>(),
    tile<Major::K, 128, 96>(),
    tile<Major::K, 0, 128, 64, true>(),
    tile<Major::K, 32, 128, 64, true>(),
    tile<Major::K, 64, 128, 64, true>(),
    tile<Major::K, 128, 128>(),
    tile<Major::K, 64, 192>(),
    tile<Major::K, 128, 192>(),
    // The kernels' own, of head dim 128.
    tile<Major::K, 128, 64, 128>(),
    tile<Major::K, 128, 80, 128>(),
    tile<Major::K, 128, 96, 128>(),
};

Tiles tiles_along_k() { return {kTiles, sizeof kTiles / sizeof *kTiles}; }

}  // namespace theirs
