// One program that is etcd or kube-apiserver, by the name it is called by. See ../build.sh.
package main

import (
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	switch filepath.Base(os.Args[0]) {
	case "etcd":
		if err := etcd(); err != nil {
			fmt.Fprintln(os.Stderr, "etcd:", err)
			os.Exit(1)
		}
	case "kube-apiserver":
		os.Exit(cli.Run(app.NewAPIServerCommand()))
	default:
		fmt.Fprintln(os.Stderr, "call it etcd or kube-apiserver")
		os.Exit(2)
	}
}

// urls is a flag with one URL, in the form in which embed.Config keeps it.
type urls []url.URL

func (u *urls) String() string { return "" }

func (u *urls) Set(s string) error {
	parsed, err := url.Parse(s)
	if err == nil {
		*u = urls{*parsed}
	}
	return err
}

// etcd takes those of etcd's flags that the tests need, by their own names.
func etcd() error {
	cfg := embed.NewConfig()
	var client, advertisedClient, peer, advertisedPeer urls
	flag.StringVar(&cfg.Name, "name", "default", "")
	flag.StringVar(&cfg.Dir, "data-dir", "", "")
	flag.StringVar(&cfg.InitialCluster, "initial-cluster", "", "")
	flag.StringVar(&cfg.Logger, "logger", "zap", "")
	flag.StringVar(&cfg.LogLevel, "log-level", "warn", "")
	flag.BoolVar(&cfg.UnsafeNoFsync, "unsafe-no-fsync", false, "")
	flag.Uint64Var(&cfg.SnapshotCount, "snapshot-count", cfg.SnapshotCount, "")
	flag.Var(&client, "listen-client-urls", "")
	flag.Var(&advertisedClient, "advertise-client-urls", "")
	flag.Var(&peer, "listen-peer-urls", "")
	flag.Var(&advertisedPeer, "initial-advertise-peer-urls", "")
	flag.Parse()
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = client, advertisedClient
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = peer, advertisedPeer
	server, err := embed.StartEtcd(cfg)
	if err != nil {
		return err
	}
	defer server.Close()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	select {
	case <-stop:
		return nil
	case err := <-server.Err():
		return err
	case <-server.Server.StopNotify():
		return nil
	}
}
