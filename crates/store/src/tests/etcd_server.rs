//! A real etcd for the tests, where one is installed.
