#!/usr/bin/env bash
# Install the extra `flash` (FlashAttention-4) with the Python $1, if the machine has a suitable NVIDIA GPU.
# Prints one line if the GPU is not suitable or there are no wheels for this Python and platform. Without a GPU
# it does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
capabilities=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u | paste -sd ' ') || exit 0
[ -n "$capabilities" ] || exit 0
if ! grep -qE '(^| )(9|10)\.' <<<"$capabilities"; then
  echo "FlashAttention-4 is not installed: it needs compute capability 9 or 10, and this GPU has $capabilities." \
    "PyTorch's own attention is used."
elif ! "$1" -m pip install -q --only-binary=:all: -c constraints.txt -e '.[flash]'; then
  echo "FlashAttention-4 is not installed: pip found no wheel for this Python and platform (see above)." \
    "PyTorch's own attention is used."
fi
