#!/usr/bin/env bash
# The ranks of one machine of several, for schedulers that start a program on each: `deepspeed` without ssh.
#
#   NODES=2 NODE_RANK=0 SLOTS=8 MASTER_ADDR=node0 STOP=/shared/runs/NAME/stop \
#     bash launch/node.sh launch/recipes/RECIPE.toml --runs /shared/runs --resume
#
# NODES machines with SLOTS ranks each; this is the one with number NODE_RANK, 0 is at MASTER_ADDR. SIGTERM and
# SIGUSR1 ask the training to finish its step and save, by the file STOP, since `deepspeed` would end its ranks.
# The exit status is that of the ranks (README.md).
set -euo pipefail
for name in NODES NODE_RANK SLOTS MASTER_ADDR STOP; do
  if [[ -z "${!name:-}" ]]; then
    echo "error: launch/node.sh needs $name in the environment" >&2
    exit 2
  fi
done

hosts=$(mktemp)
trap 'rm -f "$hosts"' EXIT
for ((node = 0; node < NODES; node++)); do
  echo "node$node slots=$SLOTS" # of the names only their number counts
done >"$hosts"

stop() {
  echo "launch/node.sh: asks the training to stop: $STOP" >&2
  mkdir -p "$(dirname "$STOP")" && touch "$STOP"
}
trap stop TERM USR1

"${PYTHON:-python}" -m deepspeed.launcher.runner --hostfile "$hosts" --no_ssh --node_rank "$NODE_RANK" \
  --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}" \
  "$(dirname "${BASH_SOURCE[0]}")/train.py" "$@" &
ranks=$!
# A signal ends `wait` early, with a status of its own above 128.
status=0
wait "$ranks" || status=$?
while kill -0 "$ranks" 2>/dev/null; do
  status=0
  wait "$ranks" || status=$?
done
exit "$status"
