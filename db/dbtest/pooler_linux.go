package dbtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// startPooler starts a PgBouncer in transaction mode in front of a server. Every database and the login of the tests go
// through it, with the password that it has been told, because it has to know one to open connections of its own.
func startPooler(ctx context.Context, binary, adminURL string) (address string, stop func(), err error) {
	admin, err := url.Parse(adminURL)
	if err != nil {
		return "", nil, err
	}
	dir, err := os.MkdirTemp("", "holdfast-pgbouncer-")
	if err != nil {
		return "", nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	address = l.Addr().String()
	_, port, err := net.SplitHostPort(address)
	if err := errors.Join(err, l.Close()); err != nil {
		return "", nil, err
	}
	config := fmt.Sprintf(`[databases]
* = host=%s port=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %s
unix_socket_dir =
auth_type = trust
auth_file = %s/users
pool_mode = transaction
default_pool_size = 20
max_client_conn = 2000
query_wait_timeout = 3
server_login_retry = 1
`, admin.Hostname(), admin.Port(), port, dir)
	for name, text := range map[string]string{"pgbouncer.ini": config, "users": fmt.Sprintf("%q %q\n", login, password)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return "", nil, err
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", nil, err
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), binary, "--quiet", filepath.Join(dir, "pgbouncer.ini"))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 { // which it refuses to run as
		if cmd.SysProcAttr.Credential, err = nobody(); err != nil {
			return "", nil, err
		}
	}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		complain(os.RemoveAll(dir))
	}
	ctx, cancel := context.WithTimeout(ctx, acceptTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		// Its own console, because the tests' login is yet to be made.
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			return address, stop, conn.Close()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			stop()
			return "", nil, fmt.Errorf("%s does not start: %w", binary, err)
		}
	}
}

func nobody() (*syscall.Credential, error) {
	u, err := user.Lookup("nobody")
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, err
}

// throughPooler is a URL as servers use it behind a pooler: prepared statements do not outlive a transaction there.
func throughPooler(databaseURL, address string) string {
	u, err := url.Parse(databaseURL)
	if err != nil {
		panic(err) // pgx has connected with it
	}
	u.Host = address
	q := u.Query()
	q.Set("sslmode", "disable")
	q.Set("default_query_exec_mode", "cache_describe")
	u.RawQuery = q.Encode()
	return u.String()
}
