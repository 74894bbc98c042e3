// Package embedded runs a Postgres server of its own as a child process: the database of `holdfast dev`, and of tests
// on a machine without Docker. It is the real server, found on the machine or downloaded, not a stand-in for it.
//
//	<Dir>/lock        held (flock) by the process that called Start, for as long as it lives
//	<Dir>/password    the superuser's password, mode 0600, made once
//	<Dir>/data        Postgres's own data directory, mode 0700
//	<Dir>/init-*      a data directory being made; renamed to data only when it is whole
//
//	Start --> resolve Dir --> take lock --> stop an orphan --> initdb (once) --> postgres --> a connection works
//	Stop  --> fast shutdown --> (out of time) immediate shutdown --> (out of time) kill --> give the lock back
//
// The server listens on 127.0.0.1 alone and asks for a password (SCRAM): loopback is shared with every other user of the
// machine. There is no Unix socket, because its path is limited to about 100 bytes and temporary directories are longer.
//
// # As root
//
// Postgres refuses to run as root. Started by root, initdb and postgres run as the user that owns the data directory
// already, else as postgres, else as nobody. That user must be able to enter Dir, and under a home directory it cannot.
// Then Dir becomes a symbolic link to a fresh directory under /var/lib/holdfast, and a warning says so. Who removes the
// link starts with an empty database; the old one stays where it was.
//
// # Failure
//
//   - The process that called Start is killed: the kernel tells postgres, which shuts down fast (on Linux; elsewhere a
//     one-line shell script waits for the pipe to close and tells it). Nothing committed is lost.
//   - It is restarted at once, while that shutdown still runs, or nobody told postgres: Start holds the lock, so a
//     living server of this directory belongs to nobody. Start shuts it down fast, waits, and starts a fresh one.
//   - postgres itself is killed: it leaves postmaster.pid and, for a moment, backends that still hold its shared memory.
//     Postgres refuses to start beside them, which is what keeps the data whole, so Start tries again until they are gone.
//   - After a crash of the machine the pid in postmaster.pid may belong to some other process of the same user, and Postgres
//     would refuse to start for ever. Start checks whose it is, and tells Postgres when it is not a server of this directory.
//   - Another living process uses the directory: [ErrInUse], and nothing is touched.
//   - A temporary directory whose process was killed is swept by the next Start of an ephemeral server.
package embedded
