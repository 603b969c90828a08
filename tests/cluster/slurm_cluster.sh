#!/usr/bin/env bash
# A SLURM cluster of several "machines" on this one, for tests. Loopback only; nothing outside its own folder.
#
#   slurm_cluster.sh install        # Debian packages (root; 3.5 MB, about 10 s)
#   slurm_cluster.sh start          # munged, slurmctld and one slurmd a node; returns once every node is idle
#   eval "$(slurm_cluster.sh env)"  # SLURM_CONF for sbatch, srun, squeue, scancel, scontrol
#   slurm_cluster.sh kill-node 2    # node 2 dies at once, with all that runs on it
#   slurm_cluster.sh start-node 2   # and comes back
#   slurm_cluster.sh stop           # cancels the jobs, and ends what `start` began, by its pid
#   slurm_cluster.sh clean          # the same, and removes the folder; before a test, since SLURM remembers its jobs
#   slurm_cluster.sh status
#
# Settings: SLURM_ROOT (folder), SLURM_NODES, SLURM_CPUS and SLURM_GPUS (claimed by each node, whatever is really there;
# the GPUs are invented: SLURM hands out CUDA_VISIBLE_DEVICES for them), SLURM_PORT (first of SLURM_NODES + 1 ports).
# `start` and `stop` may be given twice. Tried as root, without systemd, with slurm-wlm 22.05 (Debian 12): install 7 s,
# start 0.2 s, stop 0.3 s (up to 7 s where jobs do not heed SIGTERM). The host's name must resolve to loopback.
set -euo pipefail

ROOT=${SLURM_ROOT:-/tmp/slurm-test}
NODES=${SLURM_NODES:-2}
CPUS=${SLURM_CPUS:-2}
GPUS=${SLURM_GPUS:-2}
PORT=${SLURM_PORT:-17100}
HOST=$(hostname -s)
export SLURM_CONF=$ROOT/slurm.conf

say() { echo "slurm_cluster: $*" >&2; }

# The pid in a file, if that process lives and is the program that we started (pids are used again).
alive() { # FILE PROGRAM
  local pid
  pid=$(cat "$1" 2>/dev/null) && [ -n "$pid" ] && [ -d "/proc/$pid" ] && grep -qa "$2" "/proc/$pid/cmdline" && echo "$pid"
}

end() { # FILE PROGRAM
  local pid
  if pid=$(alive "$1" "$2"); then
    kill -TERM "$pid" 2>/dev/null || true
    # A process without a waiting parent stays in /proc without a command line: `alive` sees that it is gone.
    for _ in $(seq 100); do alive "$1" "$2" >/dev/null || break; sleep 0.05; done
    if alive "$1" "$2" >/dev/null; then kill -KILL "$pid" 2>/dev/null || true; fi
  fi
  rm -f "$1"
}

install() {
  local name missing=
  for name in slurmctld slurmd munged sbatch; do command -v "$name" >/dev/null || missing=1; done
  [ -n "$missing" ] || return 0
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
}

configure() {
  mkdir -p "$ROOT"/{run,state,log,spool,munge}
  chmod 0755 "$ROOT" "$ROOT"/*/
  [ -s "$ROOT/munge/munge.key" ] || { head -c 128 /dev/urandom >"$ROOT/munge/munge.key"; chmod 0400 "$ROOT/munge/munge.key"; }
  cat >"$ROOT/slurm.conf" <<CONF
ClusterName=dfqtest
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits before it starts again: 120 s by default, and below 5 is refused.
AuthInfo=socket=$ROOT/munge/munge.socket,cred_expire=5
# Listen where the host's name resolves to, which is loopback, instead of on every address.
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$ROOT/state
SlurmdSpoolDir=$ROOT/spool/%n
SlurmctldPidFile=$ROOT/run/slurmctld.pid
SlurmdPidFile=$ROOT/run/slurmd-%n.pid
SlurmctldLogFile=$ROOT/log/slurmctld.log
SlurmdLogFile=$ROOT/log/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
# No control groups (containers and CI seldom let one make them), no database.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# Quick enough for tests.
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
PriorityType=priority/basic
SlurmdTimeout=10
SlurmctldTimeout=10
MessageTimeout=10
KillWait=5
CompleteWait=0
InactiveLimit=0
MinJobAge=600
OverTimeLimit=0
JobRequeue=1
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
CONF
  : >"$ROOT/gres.conf"
  local n g
  for n in $(seq "$NODES"); do
    echo "NodeName=node$n NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + n)) CPUs=$CPUS RealMemory=8000 Gres=gpu:$GPUS State=UNKNOWN" >>"$ROOT/slurm.conf"
    # SLURM binds GPUs by device files that exist; any will do. Both nodes may name the same.
    echo "NodeName=node$n Name=gpu File=$ROOT/run/gpu[0-$((GPUS - 1))]" >>"$ROOT/gres.conf"
  done
  for g in $(seq 0 $((GPUS - 1))); do [ -e "$ROOT/run/gpu$g" ] || mknod "$ROOT/run/gpu$g" c 1 3 2>/dev/null || : >"$ROOT/run/gpu$g"; done
  echo "PartitionName=main Nodes=node[1-$NODES] Default=YES MaxTime=INFINITE State=UP PreemptMode=REQUEUE" >>"$ROOT/slurm.conf"
}

start_node() {
  local file="$ROOT/run/slurmd-node$1.pid"
  if alive "$file" slurmd >/dev/null; then return; fi
  mkdir -p "$ROOT/spool/node$1"
  (cd "$ROOT" && slurmd -N "node$1" -f "$SLURM_CONF")
}

start() {
  case "$(getent hosts "$HOST" | cut -d' ' -f1 | head -n1)" in
    127.* | ::1) ;;
    *) say "$HOST does not resolve to loopback: put '127.0.0.1 $HOST' into /etc/hosts"; return 1 ;;
  esac
  configure
  if ! alive "$ROOT/run/munged.pid" munged >/dev/null; then
    munged --force --key-file="$ROOT/munge/munge.key" --socket="$ROOT/munge/munge.socket" \
      --pid-file="$ROOT/run/munged.pid" --log-file="$ROOT/log/munged.log" --seed-file="$ROOT/munge/munge.seed" 2>/dev/null
  fi
  if ! alive "$ROOT/run/slurmctld.pid" slurmctld >/dev/null; then (cd "$ROOT" && slurmctld -f "$SLURM_CONF"); fi
  local n
  for n in $(seq "$NODES"); do start_node "$n"; done
  for _ in $(seq 300); do
    if [ "$(sinfo -h -N -o %T 2>/dev/null | grep -cE '^(idle|mixed|allocated)$')" = "$NODES" ]; then return; fi
    sleep 0.1
  done
  say "the nodes did not come up; see $ROOT/log"
  tail -n 5 "$ROOT"/log/*.log >&2
  return 1
}

# A dead machine: the daemon first, then the steps' daemons, then what runs in them; in another order SLURM would be told
# that the job failed, and would not requeue it.
kill_node() {
  local pid mine
  pid=$(alive "$ROOT/run/slurmd-node$1.pid" slurmd) || { say "node $1 is not up"; return 1; }
  kill -KILL "$pid"
  rm -f "$ROOT/run/slurmd-node$1.pid"
  mine=$(on_node "$1")
  for pid in $(step_daemons "$1") $mine; do kill -KILL "$pid" 2>/dev/null || true; done
}

step_daemons() { # their sockets lie in the node's spool folder: spool/node1/node1_7.0 (7.4294967291: the batch step)
  local socket all job
  for socket in "$ROOT/spool/node$1/node$1"_*; do
    [ -S "$socket" ] || continue
    job=${socket##*_}
    for all in /proc/[0-9]*; do
      if tr '\0' ' ' 2>/dev/null <"$all/cmdline" | grep -qE "^slurmstepd: \[${job%.*}\."; then echo "${all#/proc/}"; fi
    done
  done | sort -u
}

on_node() { # processes of jobs on a node of this cluster, by their environment
  local all
  for all in /proc/[0-9]*; do
    if tr '\0' '\n' 2>/dev/null <"$all/environ" | grep -qx "SLURMD_NODENAME=node$1" &&
      tr '\0' '\n' 2>/dev/null <"$all/environ" | grep -qx "SLURM_CONF=$SLURM_CONF"; then echo "${all#/proc/}"; fi
  done
}

stop() {
  if alive "$ROOT/run/slurmctld.pid" slurmctld >/dev/null; then
    scancel --full -u "$(id -un)" 2>/dev/null || true
    for _ in $(seq 100); do [ -n "$(squeue -h 2>/dev/null)" ] || break; sleep 0.1; done
  fi
  local file
  for file in "$ROOT"/run/slurmd-node*.pid; do [ ! -e "$file" ] || end "$file" slurmd; done
  end "$ROOT/run/slurmctld.pid" slurmctld
  end "$ROOT/run/munged.pid" munged
}

case "${1:-}" in
  install) install ;;
  start) start ;;
  stop) stop ;;
  clean) stop; rm -rf "$ROOT" ;;
  env) echo "export SLURM_CONF=$SLURM_CONF" ;;
  kill-node) kill_node "$2" ;;
  start-node) start_node "$2" ;;
  status) sinfo -N -l; squeue -l ;;
  *) sed -n "2,20p" "$0" >&2; exit 2 ;;
esac
