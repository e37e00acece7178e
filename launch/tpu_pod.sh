#!/bin/bash
# Trains on all workers of a Cloud TPU pod, from any machine with gcloud.
#
#   NAME=my-v5p-64 ZONE=us-east5-a launch/tpu_pod.sh setup
#   NAME=my-v5p-64 ZONE=us-east5-a launch/tpu_pod.sh --config=experiments/gla.py:full_1b3 --workdir=/mnt/shared/gla-1b3
#
# The work directory and the data must lie where every worker sees them (Filestore, or a bucket mounted by gcsfuse).
set -euo pipefail

: "${NAME:?the name of the TPU}" "${ZONE:?its zone}"
repository="${REPOSITORY:-paperlab}"  # where it lies on the workers, from their home

# The same command on every worker at once; its status is the first that is not 0.
everywhere() {
    gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

if [ "${1:-}" = setup ]; then
    # This checkout, without what is made again there, and its environment.
    archive=$(mktemp)
    trap 'rm -f "$archive"' EXIT
    git archive --format=tar.gz HEAD >"$archive"
    gcloud compute tpus tpu-vm scp "$archive" "$NAME:paperlab.tar.gz" --zone="$ZONE" --worker=all
    everywhere "mkdir -p $repository && tar -xzf paperlab.tar.gz -C $repository && make -C $repository setup DEVICE=tpu"
    exit
fi

# --distributed: on TPU VMs the workers are found by asking Google's metadata server, which is done only when told to.
command="cd $repository && exec .venv/bin/python -m paperlab.run --distributed"
for argument in "$@"; do
    command+=" $(printf '%q' "$argument")"
done

# Status 75 (a worker was told to stop, and everything is saved), or a lost worker: the same command goes on.
for try in $(seq "${TRIES:-1}"); do
    status=0
    everywhere "$command" || status=$?
    if [ "$status" -eq 0 ] || [ "$status" -eq 2 ]; then
        break
    fi
    echo "try $try ended with status $status" >&2
done
exit "$status"
