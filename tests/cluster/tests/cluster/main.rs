//! What a cluster's operator relies on, in namespaces with a real API server.

mod join;
