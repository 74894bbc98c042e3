// Package load puts load on a Holdfast server through its public API and tells what came of it.
//
//	Workload ── when, how many ──▶ Closed or Open ── calls ──▶ Op (a Session's Append, Read, …)
//	                                    │                          │
//	                                    ▼                          ▼
//	                                  Meter                     Ledger
//	                     throughput and percentiles    what was acknowledged, and at which seq
//
// A closed loop sends a worker's next request when the last was answered: it finds the throughput. An open loop sends
// at times fixed beforehand and measures from those times, so that a server that stalls is charged for every request
// that should have been sent meanwhile ("coordinated omission").
//
// The generator shares its machine with the server, so it is built to cost little.
//
// # Failure
//
// A request that fails is counted under its code, and its worker goes on after a short pause. Its outcome may be
// unknown: the Ledger lets such a message be there once or not at all. Everything acknowledged must be there exactly
// once, at the seq that was acknowledged.
package load
