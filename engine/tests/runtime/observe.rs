//! Observations and metrics are exact.

use logweir_engine::observe::Counter;
use metrics_exporter_prometheus::PrometheusBuilder;

use super::*;

/// Counts messages and ticks.
#[derive(Default)]
struct Counting {
    messages: u64,
    ticks: u64,
}

impl Stage for Counting {
    type Message = Item;

    async fn receive(&mut self, item: Item) -> Result<(), Exit> {
        assert_ne!(item.id, 13, "unlucky");
        tokio::time::advance(Duration::from_millis(100)).await;
        self.messages += 1;
        item.answer();
        Ok(())
    }

    async fn on_tick(&mut self) -> Result<(), Exit> {
        self.ticks += 1;
        Ok(())
    }

    fn observe(&self) -> Vec<Counter> {
        vec![Counter { name: "messages", value: self.messages }, Counter { name: "ticks", value: self.ticks }]
    }
}

#[test]
fn counters_match_the_work_done() {
    run_paused(async {
        let recorder = PrometheusBuilder::new().build_recorder();
        let exported = recorder.handle();
        let (mut topology, _control) = topology(Supervision { restarts_max: 1, ..SUPERVISION });
        let mailbox = metrics::with_local_recorder(&recorder, || {
            topology.spawn(ticking(here("counting", 2, 50), 10_000), |_| Counting::default())
        });
        mailbox.try_send(Item::new(1)).unwrap();
        mailbox.try_send(Item::new(13)).unwrap();
        assert!(mailbox.try_send(Item::new(3)).is_err());
        let before = observation(&topology, "counting");
        assert_eq!((before.depth_messages, before.depth_bytes, before.handled), (2, 2, 0));
        assert!(exported.render().contains("logweir_mailbox_depth_messages{pipeline=\"test\",stage=\"counting\"} 2"));
        // Two senders wait for a credit: both for the 100 ms of the first message, one also for those of another.
        let waiters: Vec<_> = (0..2)
            .map(|id| {
                let mailbox = mailbox.clone();
                actix_rt::spawn(async move { mailbox.external().send(Item::new(id)).await.unwrap() })
            })
            .collect();
        for waiter in waiters {
            waiter.await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(10_000)).await; // one tick
        let seen = observation(&topology, "counting");
        assert_eq!((seen.entered, seen.handled, seen.discarded, seen.rejected), (4, 3, 1, 1));
        assert_eq!((seen.depth_messages, seen.depth_bytes, seen.bound), (0, 0, mailbox.bound()));
        assert_eq!((seen.restarts, seen.state), (1, "idle"));
        assert!(seen.last_panic.unwrap().contains("unlucky"));
        assert!((seen.busy_seconds - 0.3).abs() < 0.05, "{}", seen.busy_seconds);
        assert!((0.1..0.25).contains(&seen.wait_seconds), "{}", seen.wait_seconds);
        // The first instance's counters are lost with it; the second instance's are complete.
        let counters = [Counter { name: "messages", value: 2 }, Counter { name: "ticks", value: 1 }];
        assert_eq!(seen.counters, counters);

        let text = exported.render();
        for line in [
            "logweir_mailbox_depth_messages{pipeline=\"test\",stage=\"counting\"} 0",
            "logweir_mailbox_depth_bytes{pipeline=\"test\",stage=\"counting\"} 0",
            "logweir_mailbox_capacity_messages{pipeline=\"test\",stage=\"counting\"} 2",
            "logweir_mailbox_capacity_bytes{pipeline=\"test\",stage=\"counting\"} 50",
            "logweir_mailbox_full_total{pipeline=\"test\",stage=\"counting\"} 1",
            "logweir_mailbox_discarded_total{pipeline=\"test\",stage=\"counting\",reason=\"panic\"} 1",
            "logweir_stage_handled_total{pipeline=\"test\",stage=\"counting\"} 3",
            "logweir_stage_restarts_total{pipeline=\"test\",stage=\"counting\",cause=\"panic\"} 1",
            "logweir_stage_restarts_total{pipeline=\"test\",stage=\"counting\",cause=\"stall\"} 0",
            "logweir_mailbox_wait_seconds_total{pipeline=\"test\",stage=\"counting\"} 0",
            "logweir_stage_busy_seconds_total{pipeline=\"test\",stage=\"counting\"} 0",
        ] {
            assert!(text.contains(line), "missing {line} in:\n{text}");
        }
    });
}

#[test]
fn two_topologies_with_a_stage_of_the_same_name_export_separate_series() {
    run_paused(async {
        let recorder = PrometheusBuilder::new().build_recorder();
        let control = DrainControl::default();
        let mut topologies = ["a", "b"].map(|name| Topology::new(name, SUPERVISION, control.watch()));
        let mailboxes = topologies.each_mut().map(|topology| {
            metrics::with_local_recorder(&recorder, || {
                topology.spawn(here("parser", 4, 100), act(|_, _: Item| async { Ok(()) }))
            })
        });
        mailboxes[0].external().send(Item::new(1)).await.unwrap();
        mailboxes[1].external().send(Item::new(2)).await.unwrap();
        mailboxes[1].external().send(Item::new(3)).await.unwrap();
        eventually("all are handled", || mailboxes.iter().all(|mailbox| mailbox.depth().messages == 0)).await;
        let text = recorder.handle().render();
        for (pipeline, handled) in [("a", 1), ("b", 2)] {
            let line = format!("logweir_stage_handled_total{{pipeline=\"{pipeline}\",stage=\"parser\"}} {handled}");
            assert!(text.contains(&line), "missing {line} in:\n{text}");
        }
    });
}

#[test]
#[should_panic(expected = "topology test: stall_ms must be at least 1")]
fn a_stall_time_of_zero_is_rejected() {
    run(async { topology(Supervision { stall_ms: 0, ..SUPERVISION }) });
}

#[test]
fn known_waits_are_not_busy_time_and_whole_seconds_are_exported() {
    run_paused(async {
        let recorder = PrometheusBuilder::new().build_recorder();
        let (mut topology, _control) = topology(SUPERVISION);
        let mixed = |ctx: StageContext, item: Item| async move {
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            // Two concurrent waits count once.
            let sleep = || ctx.waiting(tokio::time::sleep(Duration::from_millis(2_000)));
            futures_util::future::join(sleep(), sleep()).await;
            item.answer();
            Ok(())
        };
        let mailbox = metrics::with_local_recorder(&recorder, || topology.spawn(here("mixed", 1, 1), act(mixed)));
        assert_eq!(ask(&mailbox, 1).await, Some(1));
        assert_eq!(ask(&mailbox, 2).await, Some(2));
        eventually("the stage is idle", || observation(&topology, "mixed").state == "idle").await;
        let busy = observation(&topology, "mixed").busy_seconds;
        assert!((busy - 3.0).abs() < 0.1, "{busy}");
        let text = recorder.handle().render();
        assert!(text.contains("logweir_stage_busy_seconds_total{pipeline=\"test\",stage=\"mixed\"} 3"), "{text}");
    });
}

#[test]
fn any_thread_observes_the_actors_in_pipeline_order() {
    run_paused(async {
        let (mut topology, _control) = topology(SUPERVISION);
        let gate = Gate::shut();
        let observer = topology.observer(); // created before the stages, observes them nevertheless
        let last = topology.spawn(here("last", 2, 40), gated(&gate));
        topology.spawn(here("first", 1, 2), gated(&gate));
        assert_eq!(topology.bytes_max(), 42);
        last.try_send(Item::new(1)).unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let states = || {
            let observer = observer.clone();
            let seen = std::thread::spawn(move || observer.observe()).join().unwrap();
            seen.into_iter().map(|seen| (seen.name, seen.state)).collect::<Vec<_>>()
        };
        assert_eq!(states(), [("first".to_owned(), "idle"), ("last".to_owned(), "waiting")]);
        gate.open(1);
        assert!(topology.drain().await.is_empty());
        assert_eq!(states(), [("first".to_owned(), "drained"), ("last".to_owned(), "drained")]);
    });
}

/// Counts without advancing the clock.
struct Quick(u64);

impl Stage for Quick {
    type Message = Item;

    async fn receive(&mut self, item: Item) -> Result<(), Exit> {
        self.0 += 1;
        item.answer();
        Ok(())
    }

    fn observe(&self) -> Vec<Counter> {
        vec![Counter { name: "messages", value: self.0 }]
    }
}

#[test]
fn the_counters_of_an_idle_stage_are_up_to_date() {
    run_paused(async {
        let (mut topology, _control) = topology(SUPERVISION);
        let mailbox = topology.spawn(here("quick", 8, 100), |_| Quick(0));
        for handled in 1..=20 {
            ask(&mailbox, handled).await.unwrap();
            assert_eq!(observation(&topology, "quick").counters, [Counter { name: "messages", value: handled }]);
        }
    });
}
