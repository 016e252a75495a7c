#!/usr/bin/env bash
# Brings the program ffmpeg for the tests, where there is none: Debian's, or the one in PyPI's imageio-ffmpeg. Prints the
# folder that it is in.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v ffmpeg >/dev/null; then
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ffmpeg; } >/dev/null 2>&1 || true
fi
if command -v ffmpeg >/dev/null; then
  dirname "$(command -v ffmpeg)"
  exit
fi
folder=target/ffmpeg version=0.8.1
if [ ! -x "$folder/ffmpeg" ]; then
  mkdir -p "$folder"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" "imageio-ffmpeg==$version"
  python3 -m zipfile -e "$folder"/imageio_ffmpeg-"$version"-*.whl "$folder/wheel"
  cp "$folder"/wheel/imageio_ffmpeg/binaries/ffmpeg-* "$folder/ffmpeg"
  chmod +x "$folder/ffmpeg"
fi
echo "$PWD/$folder"
