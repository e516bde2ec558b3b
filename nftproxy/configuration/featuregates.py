"""Feature gates of Kubernetes 1.36: which names are known, which of them mean something here, and what they are set to.

All Kubernetes components share one set of names, and clusters often hand the same `featureGates` to each of them. So kube-proxy
knows, and we accept, also the gates of other components; they have no effect here. An unknown name is an error (contract 8.3.1).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Gate:
    """A gate that means something to a service proxy. Stable ones are locked: they can be set to their value only."""

    default: bool
    stage: Literal["alpha", "beta", "stable", "deprecated"]


GATES: Final[Mapping[str, Gate]] = {
    "AllAlpha": Gate(default=False, stage="alpha"),
    "AllBeta": Gate(default=False, stage="beta"),
    "AllowServiceExternalIPs": Gate(default=True, stage="deprecated"),
    "ComponentFlagz": Gate(default=True, stage="beta"),
    "ComponentStatusz": Gate(default=True, stage="beta"),
    "ContextualLogging": Gate(default=True, stage="beta"),
    "LoggingAlphaOptions": Gate(default=False, stage="alpha"),
    "LoggingBetaOptions": Gate(default=True, stage="beta"),
    "MultiCIDRServiceAllocator": Gate(default=True, stage="stable"),
    "NFTablesProxyMode": Gate(default=True, stage="stable"),
    "NativeHistograms": Gate(default=False, stage="alpha"),
    "PreferSameTrafficDistribution": Gate(default=True, stage="stable"),
}

ELSEWHERE: Final = frozenset(
    """
    APIResponseCompression APIServerIdentity APIServingWithRoutine AllowParsingUserUIDFromCertAuth
    AllowUnsafeMalformedObjectDeletion AtomicFIFO AuthorizePodWebsocketUpgradeCreatePermission CBORServingAndStorage
    CPUManagerPolicyAlphaOptions CPUManagerPolicyBetaOptions CRDObservedGenerationTracking CRIListStreaming
    CSIVolumeHealth ClearingNominatedNodeNameAfterBinding ClientsAllowCARotation ClientsAllowCBOR ClientsAllowTLSCacheGC
    ClientsPreferCBOR CloudControllerManagerWatchBasedRoutesReconciliation CloudControllerManagerWebhook
    ClusterTrustBundle ClusterTrustBundleProjection ConcurrentWatchObjectDecode ConstrainedImpersonation
    ContainerCheckpoint ContainerRestartRules ContainerStopSignals ControllerManagerReleaseLeaderElectionLockOnExit
    CoordinatedLeaderElection CrossNamespaceVolumeDataSource DRAConsumableCapacity DRADeviceBindingConditions
    DRADeviceTaintRules DRADeviceTaints DRAExtendedResource DRAListTypeAttributes DRANodeAllocatableResources
    DRAPartitionableDevices DRAResourceClaimDeviceStatus DRAResourceClaimGranularStatusAuthorization
    DRAResourcePoolStatus DRASchedulerFilterTimeout DRAWorkloadResourceClaims DeclarativeValidationBeta
    DeploymentReplicaSetTerminatingReplicas DetectCacheInconsistency DynamicResourceAllocation EnvFiles EventedPLEG
    ExtendWebSocketsToKubelet GangScheduling GenericWorkload GracefulNodeShutdown GracefulNodeShutdownBasedOnPodPriority
    HPAConfigurableTolerance HPAScaleToZero HostnameOverride ImageVolume ImageVolumeWithDigest
    InOrderInformersBatchProcess InPlacePodLevelResourcesVerticalScaling InPlacePodVerticalScaling
    InPlacePodVerticalScalingExclusiveCPUs InPlacePodVerticalScalingExclusiveMemory
    InPlacePodVerticalScalingInitContainers KubeletCrashLoopBackOffMax KubeletEnsureSecretPulledImages
    KubeletInUserNamespace KubeletSeparateDiskGC KubeletServiceAccountTokenForCredentialProviders ListFromCacheSnapshot
    LocalStorageCapacityIsolationFSQuotaMonitoring ManifestBasedAdmissionControlConfig MatchLabelKeysInPodTopologySpread
    MatchLabelKeysInPodTopologySpreadSelectorMerge MaxUnavailableStatefulSet MemoryQoS MutablePVNodeAffinity
    MutablePodResourcesForSuspendedJobs MutableSchedulingDirectivesForSuspendedJobs NodeDeclaredFeatures NodeSwap
    NominatedNodeNameForExpectation OpenAPIEnums OpportunisticBatching PLEGOnDemandRelist
    PersistentVolumeClaimUnusedSinceTime PodAndContainerStatsFromCRI PodCertificateRequest PodDeletionCost
    PodLevelResourceManagers PodLevelResources PodLogsQuerySplitStreams PodReadyToStartContainersCondition
    PodTopologyLabelsAdmission PodsAPI PortForwardWebsockets PreventStaticPodAPIReferences ProcMountType QOSReserved
    RecursiveReadOnlyMounts ReduceDefaultCrashLoopBackOffDecay RelaxedServiceNameValidation ReloadKubeletClientCAFile
    ReloadKubeletServerCertificateFile RemoteRequestHeaderUID ResourceHealthStatus ResourceHealthStatusMessage
    RestartAllContainersOnContainerExits RotateKubeletServerCertificate RuntimeClassInImageCriApi SELinuxMount
    SchedulerAsyncAPICalls SchedulerAsyncPreemption SchedulerPopFromBackoffQ ServiceAccountNodeAudienceRestriction
    ServiceTrafficDistribution ShardedListAndWatch SidecarContainers SizeBasedListCostEstimate
    StaleControllerConsistencyDaemonSet StaleControllerConsistencyJob StaleControllerConsistencyReplicaSet
    StaleControllerConsistencyStatefulSet StatefulSetSemanticRevisionComparison StorageCapacityScoring StorageVersionAPI
    StorageVersionHash StorageVersionMigrator StrictIPCIDRValidation StructuredAuthenticationConfigurationEgressSelector
    StructuredAuthenticationConfigurationJWKSMetrics SupplementalGroupsPolicy TaintTolerationComparisonOperators
    TokenRequestServiceAccountUIDValidation TopologyAwareHints TopologyAwareWorkloadScheduling
    TopologyManagerPolicyAlphaOptions TopologyManagerPolicyBetaOptions TranslateStreamCloseWebsocketRequests
    UnauthenticatedHTTP2DOSMitigation UnknownVersionInteroperabilityProxy UnlockWhileProcessingFIFO
    UserNamespacesHostNetworkSupport UserNamespacesSupport VolumeAttributesClass VolumeLimitScaling
    WatchCacheInitializationPostStartHook WatchList WatchListClient WinDSR WinOverlay WindowsCPUAndMemoryAffinity
    WindowsGracefulNodeShutdown WorkloadAwarePreemption WorkloadWithJob
    """.split()  # noqa: SIM905 - a list literal would put 170 names on 170 lines
)
"""Gates of other components: those a 1.36 component lists in its help, and stable ones that configurations still name."""


def enabled(gates: Mapping[str, bool], name: str) -> bool:
    """Whether the gate `name` of GATES is on, given what the configuration sets; AllAlpha and AllBeta stand for those not set."""
    gate = GATES[name]
    if name in gates or gate.stage not in ("alpha", "beta"):
        return gates.get(name, gate.default)
    collective = "AllAlpha" if gate.stage == "alpha" else "AllBeta"
    return gates.get(collective, gate.default)


def problems(gates: Mapping[str, bool]) -> list[str]:
    """Return what is wrong with the gates set, each with its field path (contract 8.3.1)."""
    found = []
    for name, value in gates.items():
        gate = GATES.get(name)
        if gate is None and name not in ELSEWHERE:
            found.append(f"featureGates.{name}: unknown feature gate")
        elif gate is not None and gate.stage == "stable" and value is not gate.default:
            found.append(f"featureGates.{name}: is locked to {str(gate.default).lower()}")
    return found
