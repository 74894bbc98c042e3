import {
  type Holdfast as Client,
  type Options as ClientOptions,
  type conversation,
  type coordination,
  holdfast,
  type live,
  type ObjectType,
  type Schemas,
  type StandardSchema,
  type StateHandle,
  type Status,
  type state,
  type type,
} from "@holdfast/client";
import {
  Config,
  Context,
  Data,
  Deferred,
  Duration,
  Effect,
  Layer,
  Redacted,
  Schedule,
  Schema,
  type Scope,
  type Stream,
} from "effect";
import { type Called, call, changes, type Effected, effected } from "./effected.ts";
import type { HoldfastError } from "./error.ts";
import { answers } from "./gen/answers.ts";

/** How to reach a Holdfast, and as whom. */
export interface Options extends Omit<ClientOptions, "token" | "timeout" | "attemptTimeout" | "watchTimeout" | "read"> {
  /** An API key, or what the client takes in its place. */
  readonly token?: Redacted.Redacted | ClientOptions["token"];
  /** How long a call may take with all its retries; 30 s. */
  readonly timeout?: Duration.Input | undefined;
}

/** What is held for as long as a scope is open. */
export interface Held {
  /** Never succeeds, and fails as soon as what is held is someone else's: race your work with it. */
  readonly lost: Effect.Effect<never, HoldfastError>;
}

/** The conversation's one connection to a provider, which is also who may write into it live. */
export interface Floor extends Held, live.ConnectLiveResponse {
  /** What its calls name it by. */
  readonly fencingToken: number;
}

/** A tool call that is this worker's to execute. */
export interface Claim extends Held {
  readonly toolCall: conversation.ToolCall;
  readonly fencingToken: number;
  /** Says what came of the call. */
  readonly complete: (
    response: Omit<live.CompleteToolCallRequest, "conversationId" | "seq" | "fencingToken">,
  ) => Effect.Effect<live.CompleteToolCallResponse, HoldfastError>;
}

/** A lease of an object of StateService. */
export interface Lease extends Held, type.Lease {}

/** A provider's limits did not allow a call in the time that the caller would wait. */
export class NotAllowed extends Data.TaggedError("NotAllowed")<{ readonly answer: coordination.AcquireResponse }> {}

/** A Holdfast. Effects need nothing else, and fail with HoldfastError. */
export interface Service extends Omit<Effected<Called>, "state"> {
  /** An object of a type of your own, made by `defineObject` of the client with any Standard Schema, such as `Schema.toStandardSchemaV1(..)`. */
  readonly state: <S extends StandardSchema, C extends Schemas>(
    type: ObjectType<S, C>,
    name: string,
    owner?: string,
  ) => Effected<StateHandle<S, C>>;
  /** The same for a user. With a service's API key only. */
  readonly as: (user: string) => Service;
  /** Whether someone is signed in and the server answers, now and after each change. */
  readonly status: Stream.Stream<Status, HoldfastError>;
  /** Takes the floor of a conversation, keeps it, and gives it back at the end of the scope. LEASE_HELD: someone else has it. */
  readonly floor: (
    conversationId: string,
    request?: Omit<live.ConnectLiveRequest, "conversationId" | "validateOnly">,
  ) => Effect.Effect<Floor, HoldfastError, Scope.Scope>;
  /** Claims a tool call and keeps the claim. At the end of the scope it runs out, unless the call was completed. */
  readonly claim: (
    conversationId: string,
    seq: number,
    request?: Pick<live.ClaimToolCallRequest, "worker" | "leaseDuration">,
  ) => Effect.Effect<Claim, HoldfastError, Scope.Scope>;
  /** Waits until an API's limits allow a call, and gives back at the end of the scope what counts as running. */
  readonly acquire: (
    api: string,
    request?: Omit<coordination.AcquireRequest, "api" | "peek">,
    maxWait?: Duration.Input,
  ) => Effect.Effect<coordination.AcquireResponse & Held, HoldfastError | NotAllowed, Scope.Scope>;
  /** Takes a lease of an object of StateService, keeps it, and gives it back at the end of the scope. LEASE_HELD: someone else has it. */
  readonly lease: (
    ref: state.RefInput,
    lease: Pick<state.TakeLeaseInput, "name" | "holder" | "duration">,
  ) => Effect.Effect<Lease, HoldfastError, Scope.Scope>;
}

/**
 * Holdfast is the service. Its calls are those of `@holdfast/client`, as effects: `hf.conversation("c1").append(..)`, `hf.rpc.state.apply(..)`.
 * What the server answers is decoded by the schemas of this package; what they do not take is the reason ANSWER_UNREADABLE.
 */
export class Holdfast extends Context.Service<Holdfast, Service>()("@holdfast/effect/Holdfast") {
  /** A layer for one server. Its watches end with it. */
  static readonly layer = (options: Options): Layer.Layer<Holdfast> =>
    Layer.effect(
      Holdfast,
      Effect.acquireRelease(
        Effect.sync(() => holdfast(clientOptions(options))),
        (client) => Effect.promise(async () => await client[Symbol.asyncDispose]()),
      ).pipe(Effect.map(service)),
    );

  /** A layer by configuration: HOLDFAST_API and HOLDFAST_TOKEN, unless told otherwise. */
  static readonly layerConfig = (
    options: Config.Wrap<Options> = { url: Config.String("HOLDFAST_API"), token: Config.Redacted("HOLDFAST_TOKEN") },
  ): Layer.Layer<Holdfast, Config.ConfigError> => Layer.unwrap(Config.unwrap(options).pipe(Effect.map((o) => Holdfast.layer(o))));
}

function clientOptions({ token, timeout, ...options }: Options): ClientOptions {
  return {
    ...options,
    token: Redacted.isRedacted(token) ? Redacted.value(token as Redacted.Redacted) : token,
    timeout: timeout === undefined ? undefined : Duration.toMillis(timeout),
    read: (message, answer) => {
      const schema = answers[message];
      return schema ? Schema.decodeUnknownSync(schema)(answer) : answer;
    },
  };
}

function service(client: Client): Service {
  const { as, with: _, is, status, [Symbol.asyncDispose]: dispose, ...called } = client;
  const calls: Effected<Called> = effected(client, called, (c) => c, "holdfast");
  return {
    ...(calls as Omit<typeof calls, "state"> & Pick<Service, "state">),
    as: (user) => service(as(user)),
    status: changes(status),
    floor: (conversationId, request) => {
      const { live } = calls.conversation(conversationId);
      return held(
        live.connect(request).pipe(Effect.map((answer) => ({ ...answer, fencingToken: token(answer.lease) }))),
        (floor) => floor.lease,
        ({ fencingToken }) => live.ingest({ fencingToken }),
        ({ fencingToken }) => live.disconnect({ fencingToken }),
      );
    },
    claim: (conversationId, seq, request) => {
      const { live } = calls.conversation(conversationId);
      return held(
        live.claimToolCall({ ...request, seq }).pipe(
          Effect.map(({ toolCall }) => {
            const fencingToken = token(toolCall?.claim);
            const complete: Claim["complete"] = (response) => live.completeToolCall({ ...response, seq, fencingToken });
            return { toolCall: toolCall as conversation.ToolCall, fencingToken, complete };
          }),
        ),
        (claim) => claim.toolCall.claim,
        ({ fencingToken }) => live.claimToolCall({ ...request, seq, fencingToken }),
      );
    },
    acquire: (api, request, maxWait) => {
      const { acquire, release } = calls.api(api);
      return held(
        call(client, "holdfast.acquire", async (c) => {
          const wait: coordination.AcquireAndWaitRequest = { acquire: { ...request, api } };
          if (maxWait !== undefined) wait.maxWait = `${Duration.toSeconds(maxWait)}s`;
          for await (const { acquired } of c.rpc.coordination.acquireAndWait(wait)) if (acquired) return acquired;
          throw new TypeError("the server did not say how the wait ended");
        }).pipe(Effect.flatMap((a) => (a.allowed ? Effect.succeed(a) : Effect.fail(new NotAllowed({ answer: a }))))),
        (grant) => grant.lease,
        ({ grantId }) => acquire({ ...request, grantId }),
        ({ grantId, lease }) => (lease ? release({ grantId }) : Effect.void),
      );
    },
    lease: (ref, lease) => {
      const take = (more: Partial<state.TakeLeaseInput>) =>
        calls.rpc.state.apply({ ref, operations: [{ lease: { ...lease, ...more } }] });
      return held(
        take({}).pipe(Effect.map(({ results }) => results[0]?.lease as type.Lease)),
        (taken) => taken,
        ({ fencingToken }) => take({ fencingToken }),
        ({ fencingToken }) => take({ fencingToken, release: true }),
      );
    },
  };
}

const token = (lease: type.Lease | undefined): number => lease?.fencingToken ?? 0;

/** held acquires something, renews its lease while the scope is open, and releases it at the end. */
function held<A extends object, E>(
  acquire: Effect.Effect<A, E>,
  lease: (a: A) => type.Lease | undefined,
  renew: (a: A) => Effect.Effect<unknown, HoldfastError>,
  release: (a: A) => Effect.Effect<unknown, HoldfastError> = () => Effect.void,
): Effect.Effect<A & Held, E, Scope.Scope> {
  return Effect.gen(function* () {
    const lost = yield* Deferred.make<never, HoldfastError>();
    // What cannot be given back runs out.
    const a = yield* Effect.acquireRelease(acquire, (a) => Effect.ignore(release(a)));
    const { expiresIn } = lease(a) ?? {};
    if (expiresIn !== undefined)
      yield* renew(a).pipe(
        Effect.retry({ while: (e) => e.isRetryable, schedule: Schedule.spaced("1 second") }),
        Effect.delay(Duration.seconds(Number.parseFloat(expiresIn) / 3)),
        Effect.forever,
        Effect.catch((e) => Deferred.fail(lost, e)),
        Effect.forkScoped,
      );
    return { ...a, lost: Deferred.await(lost) };
  });
}
